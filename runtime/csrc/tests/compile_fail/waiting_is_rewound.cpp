// A waiting request is in no step that could fail.
// expect: it is in no step that could fail
#include "request.hpp"

using namespace tsrun;

Decoding legal(Decoding state) { return rewind(std::move(state)); }

#ifdef ILLEGAL
void illegal(Waiting state) { rewind(std::move(state)); }
#endif
