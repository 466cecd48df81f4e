// A transfer that has begun is started.
// expect: a transfer that nobody starts never ends
#include "prefix_cache.hpp"

using namespace tsrun;

std::optional<Transfer> legal(PrefixCache& cache) { return cache.begin_store(BlockId{1}, TransferId{0}); }

#ifdef ILLEGAL
void illegal(PrefixCache& cache) { cache.begin_store(BlockId{1}, TransferId{0}); }
#endif
