// A request's tokens have one owner.
// expect gcc: use of deleted function 'tsrun::Request::Request(const tsrun::Request&)'
// expect clang: call to deleted constructor of 'tsrun::Request'
#include "request.hpp"

using namespace tsrun;

const Request& legal(const Decoding& state) { return *state.request; }

#ifdef ILLEGAL
Request illegal(const Decoding& state) { return *state.request; }
#endif
