// A request that has made no token has met no stop condition.
// expect: it has made no token; abort ends it
#include "request.hpp"

using namespace tsrun;

Ended legal(Decoding state, Landed landed) { return finish(std::move(state), landed); }

#ifdef ILLEGAL
void illegal(Prefilling state, Landed landed) { finish(std::move(state), landed); }
#endif
