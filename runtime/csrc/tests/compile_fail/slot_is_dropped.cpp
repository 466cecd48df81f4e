// A slot that was taken has an owner.
// expect: a slot that nobody owns is lost
#include "slots.hpp"

using namespace tsrun;

std::optional<SlotLease> legal(SlotPool& pool) { return pool.take(); }

#ifdef ILLEGAL
void illegal(SlotPool& pool) { pool.take(); }
#endif
