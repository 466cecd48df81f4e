// A slot has one owner.
// expect gcc: tsrun::SlotLease::SlotLease(const tsrun::SlotLease&)' is implicitly declared as deleted
// expect clang: call to implicitly-deleted copy constructor of 'tsrun::SlotLease'
#include "slots.hpp"

using namespace tsrun;

SlotLease legal(SlotLease lease) { return lease; }

#ifdef ILLEGAL
SlotLease illegal(const SlotLease& lease) { return lease; }
#endif
