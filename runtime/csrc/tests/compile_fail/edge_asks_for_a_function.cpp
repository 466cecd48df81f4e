// A new edge of the table needs a function.
// expect: no function takes this state along this edge of the table
// patch transitions.hpp: State::preempted, State::loading} => State::preempted}
// patch transitions.hpp: edges[] = { => edges[] = {{State::loading, Event::rewind, State::loading, ""},
#include "transition_check.cpp"
