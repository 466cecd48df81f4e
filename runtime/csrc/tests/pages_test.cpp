#include "pages.hpp"

#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "cache_layout.hpp"
#include "check.hpp"
#include "surroundings.hpp"

namespace tsrun {

using tests::landed;

TEST("a pool gives every page once and then none") {
  const StepClock clock;
  PagePool pool(3, &clock);
  std::vector<WritablePage> leases;
  std::set<PageId> pages;
  while (pool.has_free()) {
    leases.push_back(pool.take());
    pages.insert(leases.back().page());
  }
  CHECK((pages == std::set{PageId{0}, PageId{1}, PageId{2}}));
  CHECK(pool.num_available() == 0);
}

TEST("a page returns when its lease dies, and a moved lease returns it once") {
  const StepClock clock;
  PagePool pool(2, &clock);
  {
    WritablePage first = pool.take();
    WritablePage second = pool.take();
    const WritablePage moved(std::move(first));
    CHECK(moved.page() == PageId{0} && second.page() == PageId{1});
    CHECK(pool.num_available() == 0);
  }
  CHECK(pool.num_available() == 2);
}

TEST("a page that is dropped during a step is held until the step is over") {
  StepClock clock;
  PagePool pool(1, &clock);
  clock.youngest = StepId{0};
  {
    const WritablePage dropped = pool.take();
  }
  CHECK(pool.num_held() == 1 && pool.num_available() == 0);
  clock.retired = StepId{0};
  pool.retire();
  CHECK(pool.num_held() == 0 && pool.num_available() == 1);
}

TEST("a page given back with the proof that no step uses it is free at once") {
  StepClock clock;
  PagePool pool(1, &clock);
  WritablePage page = pool.take();
  clock.youngest = StepId{0};
  pool.give_back(std::move(page), landed());
  CHECK(pool.num_available() == 1);
}

TEST("a page is held for the step of a reader who left earlier than the last one") {
  StepClock clock;
  PagePool pool(1, &clock);
  CachedPage first = pool.seal(pool.take(), BlockId{0});
  CachedPage second = pool.share(first.page());
  clock.youngest = StepId{0};
  {
    const CachedPage dropped = std::move(first);
  }  // step 0 still reads it for this one
  pool.give_back(std::move(second), landed());
  CHECK(pool.num_held() == 1);
  clock.retired = StepId{0};
  pool.retire();
  CHECK(pool.num_idle() == 1);
}

TEST("a held page that finds a reader is not free when its step is over") {
  StepClock clock;
  PagePool pool(1, &clock);
  clock.youngest = StepId{0};
  {
    const CachedPage dropped = pool.seal(pool.take(), BlockId{0});
  }
  const CachedPage found = pool.share(PageId{0});
  clock.retired = StepId{0};
  pool.retire();
  CHECK(pool.num_held() == 0 && pool.num_available() == 0 && pool.num_readers(PageId{0}) == 1);
}

TEST("a cached page that nobody reads is idle, the longest unused first, and free when its block forgets it") {
  const StepClock clock;
  PagePool pool(3, &clock);
  CachedPages pages(&pool);
  for (std::int32_t block = 0; block < 3; ++block) pages.add(pool.seal(pool.take(), BlockId{block}));
  pages.give_back(landed());
  CHECK(pool.num_idle() == 3 && !pool.has_free());
  CHECK(pool.oldest_idle() == PageId{2});  // of a sequence the last page
  CHECK(pool.block_of(PageId{2}) == BlockId{2});
  pool.forget(PageId{2});
  CHECK(pool.has_free() && pool.num_idle() == 2 && pool.oldest_idle() == PageId{1});
}

TEST("a page without a block is free after its last reader") {
  const StepClock clock;
  PagePool pool(1, &clock);
  {
    const CachedPage only = pool.seal(pool.take(), none<BlockId>);
  }
  CHECK(pool.has_free() && pool.num_idle() == 0);
}

TEST("a part of a page counts as a page") {
  static_assert(pages_for(0, 4) == 0 && pages_for(1, 4) == 1 && pages_for(4, 4) == 1 && pages_for(5, 4) == 2);
}

}  // namespace tsrun
