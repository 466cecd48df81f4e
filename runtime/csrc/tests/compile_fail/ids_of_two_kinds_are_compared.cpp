// Ids of two kinds are not equal, and not unequal.
// expect gcc: no match for 'operator==' (operand types are 'tsrun::PageId' and 'tsrun::HostPageId')
// expect clang: invalid operands to binary expression ('tsrun::PageId' and 'tsrun::HostPageId')
#include "ids.hpp"

using namespace tsrun;

bool legal(PageId page, PageId other) { return page == other; }

#ifdef ILLEGAL
bool illegal(PageId page, HostPageId other) { return page == other; }
#endif
