// An id is no number to reckon with.
// expect gcc: no match for 'operator+' (operand types are 'tsrun::PageId' and 'int')
// expect clang: invalid operands to binary expression ('tsrun::PageId' and 'int')
#include "ids.hpp"

using namespace tsrun;

PageId legal(PageId page) { return PageId{number(page) + 1}; }

#ifdef ILLEGAL
PageId illegal(PageId page) { return page + 1; }
#endif
