// A page has one writer.
// expect gcc: tsrun::WritablePage::WritablePage(const tsrun::WritablePage&)' is implicitly declared as deleted
// expect clang: call to implicitly-deleted copy constructor of 'tsrun::WritablePage'
#include "pages.hpp"

using namespace tsrun;

WritablePage legal(WritablePage lease) { return lease; }

#ifdef ILLEGAL
WritablePage illegal(const WritablePage& lease) { return lease; }
#endif
