// No step writes to pages that a transfer writes to.
// expect: the pages are still written by a transfer
#include "request.hpp"

using namespace tsrun;

Prefilling legal(Prefilling state) { return fill(std::move(state), 16); }

#ifdef ILLEGAL
void illegal(Loading state) { fill(std::move(state), 16); }
#endif
