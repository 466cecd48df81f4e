// A host page that was taken has an owner.
// expect: a host page that nobody owns is lost
#include "host_tier.hpp"

using namespace tsrun;

std::optional<HostCopy> legal(HostPool& pool) { return pool.take(); }

#ifdef ILLEGAL
void illegal(HostPool& pool) { pool.take(); }
#endif
