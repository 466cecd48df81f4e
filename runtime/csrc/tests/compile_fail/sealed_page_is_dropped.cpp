// A sealed page has a reader.
// expect: a share that nobody owns is lost to its reader
#include "pages.hpp"

using namespace tsrun;

CachedPage legal(PagePool& pool, WritablePage page) { return pool.seal(std::move(page), BlockId{1}); }

#ifdef ILLEGAL
void illegal(PagePool& pool, WritablePage page) { pool.seal(std::move(page), BlockId{1}); }
#endif
