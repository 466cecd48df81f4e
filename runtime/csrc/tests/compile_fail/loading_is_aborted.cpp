// Pages that a transfer writes to are not freed.
// expect: a transfer still writes to its pages; it leaves
#include "request.hpp"

using namespace tsrun;

Ended legal(Decoding state, Landed landed) { return abort(std::move(state), landed); }

#ifdef ILLEGAL
void illegal(Loading state, Landed landed) { abort(std::move(state), landed); }
#endif
