// A reader gives its share back once.
// expect: argument not in expected state; expected 'unconsumed', observed 'consumed'
// compiler: clang
#include "pages.hpp"

using namespace tsrun;

void legal(PagePool& pool, CachedPage page, Landed landed) { pool.give_back(std::move(page), landed); }

#ifdef ILLEGAL
void illegal(PagePool& pool, CachedPage page, Landed landed) {
  pool.give_back(std::move(page), landed);
  pool.give_back(std::move(page), landed);
}
#endif
