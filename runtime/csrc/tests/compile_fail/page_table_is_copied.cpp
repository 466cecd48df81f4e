// The pages of a request have one owner.
// expect gcc: use of deleted function 'tsrun::PageTable::PageTable(const tsrun::PageTable&)'
// expect clang: call to implicitly-deleted copy constructor of 'tsrun::PageTable'
#include "page_table.hpp"

using namespace tsrun;

PageTable legal(PageTable lease) { return lease; }

#ifdef ILLEGAL
PageTable illegal(const PageTable& lease) { return lease; }
#endif
