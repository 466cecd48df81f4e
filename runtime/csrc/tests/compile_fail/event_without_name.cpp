// A new event has a name.
// expect: every event has a name, in the same order
// patch transitions.hpp: Event : std::uint8_t { => Event : std::uint8_t { pause,
#include "transitions.hpp"
