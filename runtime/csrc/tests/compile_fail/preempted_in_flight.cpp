// Pages go back only with the proof that no step uses them.
// expect: no matching function for call to 'preempt
#include "request.hpp"

using namespace tsrun;

Preempted legal(Decoding state, Landed landed) { return preempt(std::move(state), landed); }

#ifdef ILLEGAL
Preempted illegal(Decoding state) { return preempt(std::move(state)); }
#endif
