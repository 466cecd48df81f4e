// Pages that a transfer writes to are not given to another request.
// expect: the pages are still written by a transfer
#include "request.hpp"

using namespace tsrun;

Preempted legal(Decoding state, Landed landed) { return preempt(std::move(state), landed); }

#ifdef ILLEGAL
void illegal(Loading state, Landed landed) { preempt(std::move(state), landed); }
#endif
