// Whoever gives a page back hands the lease over.
// expect gcc: cannot bind rvalue reference of type 'tsrun::WritablePage&&' to lvalue of type 'tsrun::WritablePage'
// expect clang: no matching member function for call to 'give_back'
#include "pages.hpp"

using namespace tsrun;

void legal(PagePool& pool, WritablePage page, Landed landed) { pool.give_back(std::move(page), landed); }

#ifdef ILLEGAL
void illegal(PagePool& pool, WritablePage page, Landed landed) { pool.give_back(page, landed); }
#endif
