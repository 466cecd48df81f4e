// Whoever hands a slot on has it no more.
// expect: invalid invocation of method 'slot' on object 'lease' while it is in the 'consumed' state
// compiler: clang
#include "slots.hpp"

using namespace tsrun;

SlotId legal(SlotLease lease) {
  const SlotLease owner = std::move(lease);
  return owner.slot();
}

#ifdef ILLEGAL
SlotId illegal(SlotLease lease) {
  const SlotLease owner = std::move(lease);
  return lease.slot();
}
#endif
