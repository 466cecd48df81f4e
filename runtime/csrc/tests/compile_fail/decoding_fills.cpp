// A prompt is computed once.
// expect: the prompt of a decoding request is computed already
#include "request.hpp"

using namespace tsrun;

Prefilling legal(Prefilling state) { return fill(std::move(state), 16); }

#ifdef ILLEGAL
void illegal(Decoding state) { fill(std::move(state), 16); }
#endif
