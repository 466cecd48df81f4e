// A request whose pages are on their way does not decode.
// expect: the prompt is not computed yet
#include "request.hpp"

using namespace tsrun;

Decoding legal(Decoding state, std::span<const Token> tokens) { return decode(std::move(state), tokens); }

#ifdef ILLEGAL
void illegal(Loading state, std::span<const Token> tokens) { decode(std::move(state), tokens); }
#endif
