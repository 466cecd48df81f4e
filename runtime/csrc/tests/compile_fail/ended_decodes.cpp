// An ended request is in no table: it has no events.
// expect: no matching function for call to 'decode
#include "request.hpp"

using namespace tsrun;

Decoding legal(Decoding state, std::span<const Token> tokens) { return decode(std::move(state), tokens); }

#ifdef ILLEGAL
void illegal(Ended state, std::span<const Token> tokens) { decode(std::move(state), tokens); }
#endif
