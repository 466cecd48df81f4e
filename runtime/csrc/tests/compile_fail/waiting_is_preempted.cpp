// A waiting request has nothing to take back.
// expect: a request in the queue owns nothing that could be taken back
#include "request.hpp"

using namespace tsrun;

Preempted legal(Decoding state, Landed landed) { return preempt(std::move(state), landed); }

#ifdef ILLEGAL
void illegal(Waiting state, Landed landed) { preempt(std::move(state), landed); }
#endif
