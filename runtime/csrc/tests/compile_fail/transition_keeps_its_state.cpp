// A transition takes the state that it leaves.
// expect: a transition consumes its state: give it with std::move
#include "request.hpp"

using namespace tsrun;

Decoding legal(Decoding state, std::span<const Token> tokens) { return decode(std::move(state), tokens); }

#ifdef ILLEGAL
void illegal(Decoding state, std::span<const Token> tokens) { decode(state, tokens); }
#endif
