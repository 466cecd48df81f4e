// A waiting request has no prompt that it could decode after.
// expect: a request in the queue has no computed prompt
#include "request.hpp"

using namespace tsrun;

Decoding legal(Prefilling state) { return start_decoding(std::move(state), 7); }

#ifdef ILLEGAL
void illegal(Waiting state) { start_decoding(std::move(state), 7); }
#endif
