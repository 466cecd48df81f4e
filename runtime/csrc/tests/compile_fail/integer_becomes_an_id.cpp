// An integer is no id until it is called one.
// expect gcc: cannot convert 'int32_t' {aka 'int'} to 'tsrun::PageId'
// expect clang: cannot initialize a parameter of type 'tsrun::PageId' with an lvalue of type 'std::int32_t'
#include "pages.hpp"

using namespace tsrun;

CachedPage legal(PagePool& pool, std::int32_t page) { return pool.share(PageId{page}); }

#ifdef ILLEGAL
CachedPage illegal(PagePool& pool, std::int32_t page) { return pool.share(page); }
#endif
