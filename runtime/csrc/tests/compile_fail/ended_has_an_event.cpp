// Nothing happens to a request that has ended.
// expect: the table speaks of events with names, and of states that have not ended
// patch transitions.hpp: edges[] = { => edges[] = {{State::ended, Event::admit, State::prefilling, ""},
#include "transitions.hpp"
