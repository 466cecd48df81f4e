// Whoever seals a page has it no more.
// expect: invalid invocation of method 'page' on object 'page' while it is in the 'consumed' state
// compiler: clang
#include "pages.hpp"

using namespace tsrun;

CachedPage legal(PagePool& pool, BlockId block) {
  WritablePage page = pool.take();
  return pool.seal(std::move(page), block);
}

#ifdef ILLEGAL
PageId illegal(PagePool& pool, BlockId block) {
  WritablePage page = pool.take();
  const CachedPage cached = pool.seal(std::move(page), block);
  return page.page();
}
#endif
