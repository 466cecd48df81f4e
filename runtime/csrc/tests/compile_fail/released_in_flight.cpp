// A request that has ended keeps its pages until its step is over.
// expect: no matching function for call to 'release
#include "request.hpp"

using namespace tsrun;

Ended legal(Finishing state, Landed landed) { return release(std::move(state), landed); }

#ifdef ILLEGAL
Ended illegal(Finishing state) { return release(std::move(state)); }
#endif
