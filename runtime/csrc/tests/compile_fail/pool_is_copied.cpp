// Leases point at their pool, which stays where it is.
// expect gcc: use of deleted function 'tsrun::PagePool::PagePool(const tsrun::PagePool&)'
// expect clang: call to deleted constructor of 'tsrun::PagePool'
#include "pages.hpp"

using namespace tsrun;

const PagePool& legal(const PagePool& pool) { return pool; }

#ifdef ILLEGAL
PagePool illegal(const PagePool& pool) { return pool; }
#endif
