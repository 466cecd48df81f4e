// Only its pool lends a page.
// expect gcc: is private within this context
// expect clang: calling a private constructor of class 'tsrun::WritablePage'
#include "pages.hpp"

using namespace tsrun;

WritablePage legal(PagePool& pool) { return pool.take(); }

#ifdef ILLEGAL
WritablePage illegal(PagePool& pool, PageId page) { return WritablePage(&pool, page); }
#endif
