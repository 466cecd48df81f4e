// A group of ranks is none of caches.
// expect gcc: no known conversion for argument 1 from 'tsrun::RankGroupId' to 'tsrun::CacheGroupId'
// expect clang: no known conversion from 'tsrun::RankGroupId' to 'tsrun::CacheGroupId'
#include "prefix_cache.hpp"

using namespace tsrun;

PagePool& legal(PrefixCache& cache, CacheGroupId group) { return cache.pool(group); }

#ifdef ILLEGAL
PagePool& illegal(PrefixCache& cache, RankGroupId ranks) { return cache.pool(ranks); }
#endif
