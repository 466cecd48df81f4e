// A block of the prefix cache is no page.
// expect gcc: cannot convert 'tsrun::BlockId' to 'tsrun::PageId'
// expect clang: cannot initialize a parameter of type 'tsrun::PageId' with an lvalue of type 'tsrun::BlockId'
#include "pages.hpp"

using namespace tsrun;

CachedPage legal(PagePool& pool, PageId page) { return pool.share(page); }

#ifdef ILLEGAL
CachedPage illegal(PagePool& pool, BlockId block) { return pool.share(block); }
#endif
