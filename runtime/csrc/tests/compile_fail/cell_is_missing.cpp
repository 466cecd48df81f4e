// No event of a state is left out.
// expect: every state says of every event, once, what it does or why it never comes
// patch transitions.hpp: {Event::fill, {State::decoding} => {Event::fill, {}
#include "transitions.hpp"
