// The shares of a sequence have one owner.
// expect gcc: tsrun::CachedPages::CachedPages(const tsrun::CachedPages&)' is implicitly declared as deleted
// expect clang: call to implicitly-deleted copy constructor of 'tsrun::CachedPages'
#include "pages.hpp"

using namespace tsrun;

CachedPages legal(CachedPages lease) { return lease; }

#ifdef ILLEGAL
CachedPages illegal(const CachedPages& lease) { return lease; }
#endif
