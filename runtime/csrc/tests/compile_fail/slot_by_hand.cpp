// Only its pool lends a slot.
// expect gcc: is private within this context
// expect clang: calling a private constructor of class 'tsrun::SlotLease'
#include "slots.hpp"

using namespace tsrun;

std::optional<SlotLease> legal(SlotPool& pool) { return pool.take(); }

#ifdef ILLEGAL
SlotLease illegal(SlotPool& pool, SlotId slot) { return SlotLease(&pool, slot); }
#endif
