// A page that one branch has sealed is not sealed after it.
// expect: argument not in expected state; expected 'unconsumed', observed 'unknown'
// compiler: clang
#include "pages.hpp"

using namespace tsrun;

CachedPage legal(PagePool& pool, BlockId block) {
  WritablePage page = pool.take();
  return pool.seal(std::move(page), block);
}

#ifdef ILLEGAL
CachedPage illegal(PagePool& pool, BlockId block, CachedPages& pages) {
  WritablePage page = pool.take();
  if (number(block) > 0) pages.add(pool.seal(std::move(page), block));
  return pool.seal(std::move(page), block);
}
#endif
