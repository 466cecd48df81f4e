// The pages of a sequence go back only with the proof that no step uses them.
// expect gcc: no matching function for call to 'tsrun::CachedPages::give_back()'
// expect clang: too few arguments to function call
#include "pages.hpp"

using namespace tsrun;

void legal(CachedPages& pages, Landed landed) { pages.give_back(landed); }

#ifdef ILLEGAL
void illegal(CachedPages& pages) { pages.give_back(); }
#endif
