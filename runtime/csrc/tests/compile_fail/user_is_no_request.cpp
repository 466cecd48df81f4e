// A user's id is none of a request.
// expect gcc: cannot convert 'tsrun::UserId' to 'tsrun::RequestId'
// expect clang: with an lvalue of type 'tsrun::UserId'
#include "scheduler.hpp"

using namespace tsrun;

void legal(Scheduler& scheduler, RequestId request) { scheduler.abort(request); }

#ifdef ILLEGAL
void illegal(Scheduler& scheduler, UserId user) { scheduler.abort(user); }
#endif
