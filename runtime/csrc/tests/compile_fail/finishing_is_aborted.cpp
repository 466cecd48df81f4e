// The pages of a request that has ended are held until its step is over.
// expect: it has ended; its pages are held until its step is over
#include "request.hpp"

using namespace tsrun;

Ended legal(Decoding state, Landed landed) { return abort(std::move(state), landed); }

#ifdef ILLEGAL
void illegal(Finishing state, Landed landed) { abort(std::move(state), landed); }
#endif
