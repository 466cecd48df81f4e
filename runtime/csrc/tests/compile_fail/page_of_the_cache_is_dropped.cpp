// A page that the prefix cache gave has an owner.
// expect: a page that nobody owns is lost to its writer
#include "prefix_cache.hpp"

using namespace tsrun;

std::optional<WritablePage> legal(PrefixCache& cache) { return cache.take(full_group); }

#ifdef ILLEGAL
void illegal(PrefixCache& cache) { cache.take(full_group); }
#endif
