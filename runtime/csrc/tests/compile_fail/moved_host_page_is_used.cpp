// Whoever hands a host page on has it no more.
// expect: invalid invocation of method 'page' on object 'copy' while it is in the 'consumed' state
// compiler: clang
#include "host_tier.hpp"

using namespace tsrun;

HostPageId legal(HostCopy copy) {
  const HostCopy owner = std::move(copy);
  return owner.page();
}

#ifdef ILLEGAL
HostPageId illegal(HostCopy copy) {
  const HostCopy owner = std::move(copy);
  return copy.page();
}
#endif
