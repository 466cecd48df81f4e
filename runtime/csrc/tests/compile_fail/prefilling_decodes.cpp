// A request decodes only after its prompt.
// expect: the prompt is not computed yet
#include "request.hpp"

using namespace tsrun;

Decoding legal(Decoding state, std::span<const Token> tokens) { return decode(std::move(state), tokens); }

#ifdef ILLEGAL
void illegal(Prefilling state, std::span<const Token> tokens) { decode(std::move(state), tokens); }
#endif
