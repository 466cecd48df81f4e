// A waiting request can not decode.
// expect: a request in the queue owns no pages to decode with
#include "request.hpp"

using namespace tsrun;

Decoding legal(Decoding state, std::span<const Token> tokens) { return decode(std::move(state), tokens); }

#ifdef ILLEGAL
void illegal(Waiting state, std::span<const Token> tokens) { decode(std::move(state), tokens); }
#endif
