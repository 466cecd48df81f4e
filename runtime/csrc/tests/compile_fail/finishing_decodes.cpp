// A request that has ended makes no more tokens.
// expect: it has ended; what its step makes is dropped
#include "request.hpp"

using namespace tsrun;

Decoding legal(Decoding state, std::span<const Token> tokens) { return decode(std::move(state), tokens); }

#ifdef ILLEGAL
void illegal(Finishing state, std::span<const Token> tokens) { decode(std::move(state), tokens); }
#endif
