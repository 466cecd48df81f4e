// A waiting request has no step to wait for.
// expect: it is in no step or transfer to wait for; abort ends it
#include "request.hpp"

using namespace tsrun;

Finishing legal(Loading state) { return leave(std::move(state)); }

#ifdef ILLEGAL
void illegal(Waiting state) { leave(std::move(state)); }
#endif
