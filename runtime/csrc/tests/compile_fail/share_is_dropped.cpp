// A share has a reader.
// expect: a share that nobody owns is lost to its reader
#include "pages.hpp"

using namespace tsrun;

CachedPage legal(PagePool& pool, PageId page) { return pool.share(page); }

#ifdef ILLEGAL
void illegal(PagePool& pool, PageId page) { pool.share(page); }
#endif
