// Nothing arrives for a waiting request.
// expect: a request in the queue owns no pages that could arrive
#include "request.hpp"

using namespace tsrun;

Prefilling legal(Loading state) { return loaded(std::move(state), 16); }

#ifdef ILLEGAL
void illegal(Waiting state) { loaded(std::move(state), 16); }
#endif
