// A function leads where the table says.
// expect: no function takes this state along this edge of the table
// patch request.hpp: Decoding rewind(Decoding&& state); => Prefilling rewind(Decoding&& state);
#include "transition_check.cpp"
