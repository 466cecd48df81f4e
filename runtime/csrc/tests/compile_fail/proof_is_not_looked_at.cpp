// Whether a request is in a step has to be asked before its pages go back.
// expect: no matching function for call to 'finish
#include "request.hpp"

using namespace tsrun;

Ended legal(Decoding state) {
  const std::optional<Landed> landed = state.seat->flights.landed();
  return landed ? finish(std::move(state), *landed) : Ended{};
}

#ifdef ILLEGAL
Ended illegal(Decoding state) {
  const std::optional<Landed> landed = state.seat->flights.landed();
  return finish(std::move(state), landed);
}
#endif
