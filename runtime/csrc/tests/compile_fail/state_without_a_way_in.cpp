// A state can be reached.
// expect: every state can be reached, and leads to the end
// patch transitions.hpp: State::waiting, Event::load, State::loading => State::waiting, Event::load, State::ended
// patch transitions.hpp: Event::load, State::loading, "starts => Event::load, State::ended, "starts
#include "transitions.hpp"
