// An event never comes for one reason.
// expect: every state says of every event, once, what it does or why it never comes
// patch transitions.hpp: nevers[] = { => nevers[] = {{Event::decode, {State::waiting}, ""},
#include "transitions.hpp"
