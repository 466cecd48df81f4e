// An id is made of a number, not of an id of another kind.
// clang 14 takes it.
// expect: cannot convert 'tsrun::HostPageId' to 'tsrun::PageId' in initialization
// compiler: gcc
#include "ids.hpp"

using namespace tsrun;

PageId legal(HostPageId page) { return PageId{number(page)}; }

#ifdef ILLEGAL
PageId illegal(HostPageId page) { return PageId{page}; }
#endif
