// A new event is said of in every state.
// expect: every state says of every event, once, what it does or why it never comes
// patch transitions.hpp: Event : std::uint8_t { => Event : std::uint8_t { pause,
// patch transitions.hpp: event_names{ => event_names{"pause",
#include "transitions.hpp"
