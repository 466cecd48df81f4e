// A waiting request has no pages to fill.
// expect: a request in the queue owns no pages to fill
#include "request.hpp"

using namespace tsrun;

Prefilling legal(Prefilling state) { return fill(std::move(state), 16); }

#ifdef ILLEGAL
void illegal(Waiting state) { fill(std::move(state), 16); }
#endif
