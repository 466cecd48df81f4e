// No way leads from a page that others read to one that is written.
// expect gcc: could not convert 'page' from 'tsrun::CachedPage' to 'tsrun::WritablePage'
// expect clang: no viable conversion from returned value of type 'tsrun::CachedPage' to function return type
// 'tsrun::WritablePage'
#include "pages.hpp"

using namespace tsrun;

WritablePage legal(PagePool& pool) { return pool.take(); }

#ifdef ILLEGAL
WritablePage illegal(CachedPage page) { return page; }
#endif
