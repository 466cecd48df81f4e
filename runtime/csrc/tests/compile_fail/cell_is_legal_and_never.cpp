// An event of a state does something or never comes.
// expect: every state says of every event, once, what it does or why it never comes
// patch transitions.hpp: {Event::fill, {State::decoding} => {Event::fill, {State::decoding, State::prefilling}
#include "transitions.hpp"
