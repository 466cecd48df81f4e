#include "pages.hpp"

#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "check.hpp"
#include "page_table.hpp"

namespace tsrun {

TEST("a pool gives every page once and then none") {
  PagePool pool(3);
  std::vector<PageLease> leases;
  std::set<PageId> pages;
  while (std::optional<PageLease> lease = pool.take()) {
    pages.insert(lease->page());
    leases.push_back(std::move(*lease));
  }
  CHECK(leases.size() == 3);
  CHECK((pages == std::set{PageId{0}, PageId{1}, PageId{2}}));
  CHECK(pool.num_free() == 0);
}

TEST("a page returns when its lease dies") {
  PagePool pool(1);
  {
    const std::optional<PageLease> lease = pool.take();
    CHECK(pool.num_free() == 0);
  }
  CHECK(pool.num_free() == 1);
}

TEST("a moved lease returns its page once") {
  PagePool pool(2);
  {
    std::optional<PageLease> first = pool.take();
    std::optional<PageLease> second = pool.take();
    const PageLease moved(std::move(*first));
    CHECK(moved.page() == PageId{0});
    *first = std::move(*second);
    CHECK(first->page() == PageId{1});
  }
  CHECK(pool.num_free() == 2);
}

TEST("a slot is its page and the row in it") {
  PagePool pool(4);
  PageTable table(8, GroupId{0});
  const std::optional<PageLease> between = pool.take();
  table.add(std::move(*pool.take()));
  table.add(std::move(*pool.take()));
  CHECK(table.size() == 2);
  CHECK(table.capacity() == 16);
  CHECK(table.slot(0) == 8);
  CHECK(table.slot(11) == 2 * 8 + 3);
}

TEST("a part of a page counts as a page") {
  static_assert(pages_for(0, 4) == 0 && pages_for(1, 4) == 1 && pages_for(4, 4) == 1 && pages_for(5, 4) == 2);
}

}  // namespace tsrun
