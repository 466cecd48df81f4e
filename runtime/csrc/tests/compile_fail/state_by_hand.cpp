// A state comes from the one before, by an edge.
// expect gcc: 'constexpr tsrun::EdgeKey::EdgeKey()' is private within this context
// expect clang: calling a private constructor of class 'tsrun::EdgeKey'
#include "request.hpp"

using namespace tsrun;

Prefilling legal(Waiting&& state, SeatOwner seat) { return admit(std::move(state), std::move(seat)); }

#ifdef ILLEGAL
Decoding illegal(Waiting&& state, SeatOwner seat) {
  return Decoding(EdgeKey{}, std::move(state.request), std::move(seat));
}
#endif
