// An ended request is not kept.
// expect gcc: no match for 'operator='
// expect clang: no viable overloaded '='
#include "entry.hpp"

using namespace tsrun;

void legal(Entry& entry, Decoding state) { entry.state = leave(std::move(state)); }

#ifdef ILLEGAL
void illegal(Entry& entry, Ended state) { entry.state = state; }
#endif
