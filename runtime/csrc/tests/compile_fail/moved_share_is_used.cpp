// Whoever hands a share on reads the page no more.
// expect: invalid invocation of method 'page' on object 'page' while it is in the 'consumed' state
// compiler: clang
#include "pages.hpp"

using namespace tsrun;

void legal(CachedPages& pages, CachedPage page) { pages.add(std::move(page)); }

#ifdef ILLEGAL
PageId illegal(CachedPages& pages, CachedPage page) {
  pages.add(std::move(page));
  return page.page();
}
#endif
