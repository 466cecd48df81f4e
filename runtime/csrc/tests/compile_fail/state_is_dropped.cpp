// What a transition makes has to be kept.
// expect: a request that nobody owns is lost with its pages
#include "request.hpp"

using namespace tsrun;

Decoding legal(Decoding state, std::span<const Token> tokens) { return decode(std::move(state), tokens); }

#ifdef ILLEGAL
void illegal(Decoding state, std::span<const Token> tokens) { decode(std::move(state), tokens); }
#endif
