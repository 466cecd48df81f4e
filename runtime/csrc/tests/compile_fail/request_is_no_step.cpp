// A request's id is none of a step.
// expect gcc: cannot convert 'tsrun::RequestId' to 'tsrun::StepId'
// expect clang: cannot initialize a parameter of type 'tsrun::StepId' with an lvalue of type 'tsrun::RequestId'
#include "page_table.hpp"

using namespace tsrun;

void legal(PageTable& pages, StepId step) { pages.end_snapshot(step, true); }

#ifdef ILLEGAL
void illegal(PageTable& pages, RequestId request) { pages.end_snapshot(request, true); }
#endif
