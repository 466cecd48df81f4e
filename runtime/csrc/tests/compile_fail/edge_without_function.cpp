// An edge of the table is a function.
// expect: no function takes this state along this edge of the table
// patch request.hpp: Prefilling fill(Prefilling&& state, std::int32_t num_cached); =>
#include "transition_check.cpp"
