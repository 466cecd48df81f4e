// A host page has one owner.
// expect gcc: tsrun::HostCopy::HostCopy(const tsrun::HostCopy&)' is implicitly declared as deleted
// expect clang: call to implicitly-deleted copy constructor of 'tsrun::HostCopy'
#include "host_tier.hpp"

using namespace tsrun;

HostCopy legal(HostCopy lease) { return lease; }

#ifdef ILLEGAL
HostCopy illegal(const HostCopy& lease) { return lease; }
#endif
