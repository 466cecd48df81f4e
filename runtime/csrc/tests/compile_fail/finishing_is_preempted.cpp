// A request that has ended does not come back to the queue.
// expect: it has ended, and must not come back to the queue
#include "request.hpp"

using namespace tsrun;

Preempted legal(Decoding state, Landed landed) { return preempt(std::move(state), landed); }

#ifdef ILLEGAL
void illegal(Finishing state, Landed landed) { preempt(std::move(state), landed); }
#endif
