// An id has no next one.
// expect gcc: no match for 'operator++' (operand type is 'tsrun::StepId')
// expect clang: cannot increment expression of enum type 'tsrun::StepId'
#include "ids.hpp"

using namespace tsrun;

StepId legal(StepId step) { return StepId{number(step) + 1}; }

#ifdef ILLEGAL
StepId illegal(StepId step) { return ++step; }
#endif
