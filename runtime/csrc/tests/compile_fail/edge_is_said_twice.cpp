// An event of a state leads to one state.
// expect: every state says of every event, once, what it does or why it never comes
// patch transitions.hpp: edges[] = { => edges[] = {{State::decoding, Event::decode, State::ended, ""},
#include "transitions.hpp"
