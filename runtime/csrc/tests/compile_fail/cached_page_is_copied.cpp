// A share has one reader.
// expect gcc: tsrun::CachedPage::CachedPage(const tsrun::CachedPage&)' is implicitly declared as deleted
// expect clang: call to implicitly-deleted copy constructor of 'tsrun::CachedPage'
#include "pages.hpp"

using namespace tsrun;

CachedPage legal(CachedPage lease) { return lease; }

#ifdef ILLEGAL
CachedPage illegal(const CachedPage& lease) { return lease; }
#endif
