// A request ends once.
// expect: "it has ended"
#include "request.hpp"

using namespace tsrun;

Ended legal(Decoding state, Landed landed) { return finish(std::move(state), landed); }

#ifdef ILLEGAL
void illegal(Finishing state, Landed landed) { finish(std::move(state), landed); }
#endif
