// A running request keeps its pages.
// expect: a running request still needs its pages
#include "request.hpp"

using namespace tsrun;

Ended legal(Finishing state, Landed landed) { return release(std::move(state), landed); }

#ifdef ILLEGAL
void illegal(Decoding state, Landed landed) { release(std::move(state), landed); }
#endif
