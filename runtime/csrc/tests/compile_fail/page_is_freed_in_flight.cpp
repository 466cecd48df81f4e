// A page goes back only with the proof that no step uses it.
// expect gcc: no matching function for call to 'tsrun::PagePool::give_back(
// expect clang: no matching member function for call to 'give_back'
#include "pages.hpp"

using namespace tsrun;

void legal(PagePool& pool, WritablePage page, Landed landed) { pool.give_back(std::move(page), landed); }

#ifdef ILLEGAL
void illegal(PagePool& pool, WritablePage page) { pool.give_back(std::move(page)); }
#endif
