// A request is in one state.
// expect gcc: use of deleted function 'tsrun::Decoding::Decoding(const tsrun::Decoding&)'
// expect clang: call to implicitly-deleted copy constructor of 'tsrun::Decoding'
#include "request.hpp"

using namespace tsrun;

Decoding legal(Decoding state) { return state; }

#ifdef ILLEGAL
Decoding illegal(const Decoding& state) { return state; }
#endif
