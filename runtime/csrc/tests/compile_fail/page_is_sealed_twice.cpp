// A page is sealed once.
// expect: argument not in expected state; expected 'unconsumed', observed 'consumed'
// compiler: clang
#include "pages.hpp"

using namespace tsrun;

CachedPage legal(PagePool& pool, BlockId block) {
  WritablePage page = pool.take();
  return pool.seal(std::move(page), block);
}

#ifdef ILLEGAL
void illegal(PagePool& pool, BlockId block) {
  WritablePage page = pool.take();
  const CachedPage cached = pool.seal(std::move(page), block);
  const CachedPage again = pool.seal(std::move(page), block);
}
#endif
