// A page is no row of the block tables.
// expect gcc: cannot convert 'tsrun::PageId' to 'tsrun::SlotId'
// expect clang: cannot initialize a parameter of type 'tsrun::SlotId' with an lvalue of type 'tsrun::PageId'
#include "page_table.hpp"

using namespace tsrun;

void legal(TableUpdates& updates, SlotId row, PageId page) { updates.set(full_group, row, 0, page); }

#ifdef ILLEGAL
void illegal(TableUpdates& updates, SlotId row, PageId page) { updates.set(full_group, page, 0, row); }
#endif
