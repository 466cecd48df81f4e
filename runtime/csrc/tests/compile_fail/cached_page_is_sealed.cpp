// A page that others read is not sealed again.
// expect gcc: cannot convert 'std::remove_reference<tsrun::CachedPage&>::type'
// expect clang: no viable conversion from 'typename std::remove_reference<CachedPage &>::type' (aka
// 'tsrun::CachedPage') to 'tsrun::WritablePage'
#include "pages.hpp"

using namespace tsrun;

CachedPage legal(PagePool& pool, WritablePage page, BlockId block) { return pool.seal(std::move(page), block); }

#ifdef ILLEGAL
CachedPage illegal(PagePool& pool, CachedPage page, BlockId block) { return pool.seal(std::move(page), block); }
#endif
