// A function of a state is an edge of the table.
// expect: there is a function for this state and event, which the table has no edge for
// patch request.hpp: // The edges. => Waiting rewind(Waiting&& state); //
#include "transition_check.cpp"
