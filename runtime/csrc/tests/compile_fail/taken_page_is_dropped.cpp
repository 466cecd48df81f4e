// A page that was taken has an owner.
// expect: a page that nobody owns is lost to its writer
#include "pages.hpp"

using namespace tsrun;

WritablePage legal(PagePool& pool) { return pool.take(); }

#ifdef ILLEGAL
void illegal(PagePool& pool) { pool.take(); }
#endif
