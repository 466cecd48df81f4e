// An id is a place in an array only where that is said.
// expect gcc: no match for 'operator[]'
// expect clang: no viable overloaded operator[]
#include "pages.hpp"

using namespace tsrun;

int legal(const std::vector<int>& sizes, PageId page) { return sizes[place(page)]; }

#ifdef ILLEGAL
int illegal(const std::vector<int>& sizes, PageId page) { return sizes[page]; }
#endif
