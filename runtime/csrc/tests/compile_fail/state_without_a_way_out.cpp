// A state does not lead back into itself alone.
// expect: every state can be reached, and leads to the end
// patch transitions.hpp: Event::release, State::ended => Event::release, State::finishing
#include "transitions.hpp"
