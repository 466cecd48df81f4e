// An id leaves as a number only where that is said.
// expect gcc: cannot convert 'tsrun::SlotId' to 'int32_t' {aka 'int'} in return
// expect clang: cannot initialize return object of type 'std::int32_t' (aka 'int') with an lvalue of type
// 'tsrun::SlotId'
#include "ids.hpp"

using namespace tsrun;

std::int32_t legal(SlotId slot) { return number(slot); }

#ifdef ILLEGAL
std::int32_t illegal(SlotId slot) { return slot; }
#endif
