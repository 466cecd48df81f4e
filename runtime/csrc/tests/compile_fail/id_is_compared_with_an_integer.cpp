// An id is compared with an id.
// expect gcc: no match for 'operator==' (operand types are 'tsrun::PageId' and 'int')
// expect clang: invalid operands to binary expression ('tsrun::PageId' and 'int')
#include "ids.hpp"

using namespace tsrun;

bool legal(PageId page) { return page == none<PageId>; }

#ifdef ILLEGAL
bool illegal(PageId page) { return page == -1; }
#endif
