// An edge takes its state, and does not only look at it.
// expect: no function takes this state along this edge of the table
// patch request.hpp: Decoding rewind(Decoding&& state); => Decoding rewind(Decoding& state);
#include "transition_check.cpp"
