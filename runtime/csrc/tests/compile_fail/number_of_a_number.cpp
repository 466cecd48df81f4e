// Only an id has a number.
// expect gcc: no matching function for call to 'number(
// expect clang: no matching function for call to 'number'
#include "ids.hpp"

using namespace tsrun;

std::int64_t legal(StepId step) { return number(step); }

#ifdef ILLEGAL
std::int64_t illegal(std::int64_t step) { return number(step); }
#endif
