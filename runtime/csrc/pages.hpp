// The pages of one group of caches on one group of ranks: who may write them, who may read them, and when they are
// free.
//
//   free -> WritablePage -> seal() -> CachedPage (shared, read-only) -> idle (cached, nobody reads it) -> evicted: free
//
// A page that is given back while a step may still use it is held by that step, and free when the step is retired.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "consumable.hpp"
#include "ids.hpp"

namespace tsrun {

class PagePool;

// Proof that no step and no transfer uses what it is shown for; only `Flights` and `PagePool` can make one.
class Landed {
 private:
  friend class Flights;
  friend class PagePool;
  Landed() = default;
};

// The steps under way, of which every pool must know the youngest.
struct StepClock {
  StepId youngest = none<StepId>;  // planned last
  StepId retired = none<StepId>;   // committed or failed last

  bool is_idle() const { return youngest == retired; }
};

// One page with one writer.
class TSRUN_CONSUMABLE [[nodiscard("a page that nobody owns is lost to its writer")]] WritablePage {
 public:
  WritablePage(WritablePage&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), page_(other.page_) {}
  WritablePage& operator=(WritablePage&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(page_, other.page_);
    return *this;
  }
  inline ~WritablePage();

  TSRUN_NOT_MOVED PageId page() const { return page_; }

 private:
  friend class PagePool;
  TSRUN_RETURNS_OWNED WritablePage(PagePool* pool, PageId page) : pool_(pool), page_(page) {}

  PagePool* pool_;
  PageId page_;
};

// A reader's share of a page that no one writes any more.
class TSRUN_CONSUMABLE [[nodiscard("a share that nobody owns is lost to its reader")]] CachedPage {
 public:
  CachedPage(CachedPage&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), page_(other.page_) {}
  CachedPage& operator=(CachedPage&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(page_, other.page_);
    return *this;
  }
  inline ~CachedPage();

  TSRUN_NOT_MOVED PageId page() const { return page_; }

 private:
  friend class PagePool;
  friend class CachedPages;
  TSRUN_RETURNS_OWNED CachedPage(PagePool* pool, PageId page) : pool_(pool), page_(page) {}

  PagePool* pool_;
  PageId page_;
};

// Leases point at their pool: it stays where it is and outlives them.
class PagePool {
 public:
  PagePool(std::int32_t num_pages, const StepClock* clock);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  std::int32_t num_pages() const { return static_cast<std::int32_t>(pages_.size()); }
  std::int32_t num_idle() const { return num_idle_; }
  std::int32_t num_held() const { return num_held_; }
  // Pages that can be had now, if need be by evicting idle ones.
  std::int32_t num_available() const { return static_cast<std::int32_t>(free_.size()) + num_idle_; }

  bool has_free() const { return !free_.empty(); }
  WritablePage take();  // of the free ones, which there must be
  PageId oldest_idle() const { return idle_first_; }
  PageId next_idle(PageId page) const { return info(page).next; }

  // From now on nobody writes it. With a block the prefix cache can give it again; without, it is free after its
  // reader.
  CachedPage seal(TSRUN_OWNED WritablePage&& page, BlockId block);
  CachedPage share(PageId cached);  // one more reader of a cached page, idle or not

  // Ends a lease at once, where `Landed` proves that no step under way uses it. The destructors of leases, which know
  // nothing of that, leave the page with the youngest step.
  void give_back(TSRUN_OWNED WritablePage&& page, Landed);
  void give_back(TSRUN_OWNED CachedPage&& page, Landed);

  // The prefix cache gives up the block of a page; an idle page becomes free.
  void forget(PageId page);
  BlockId block_of(PageId page) const { return info(page).block; }
  std::int32_t num_readers(PageId page) const { return info(page).readers; }

  // After clock->retired moved on: pages held by steps up to there are free or idle.
  void retire();

  template <typename Visit>
  void describe(Visit&& visit) const;

 private:
  friend struct Audit;  // tests/model/audit.hpp
  friend class WritablePage;
  friend class CachedPage;
  friend class CachedPages;

  enum class Use : std::uint8_t { free, writable, read, idle, held };

  struct Info {
    std::int32_t readers = 0;
    BlockId block = none<BlockId>;
    StepId until = none<StepId>;     // the last step that may use it although its lease has ended
    PageId previous = none<PageId>;  // in the list of idle pages, the longest unused first
    PageId next = none<PageId>;
    Use use = Use::free;
  };

  struct Held {
    StepId step;
    PageId page;
  };

  Info& info(PageId page) { return pages_[place(page)]; }
  const Info& info(PageId page) const { return pages_[place(page)]; }
  void drop_writable(PageId page, bool landed);
  void drop_reader(PageId page, bool landed);
  void drop_readers(std::span<const PageId> pages, bool landed);  // the last page first
  void end_use(PageId page, bool landed);
  void settle(PageId page);  // nobody uses it: free, or idle while a block has it
  void link_idle(PageId page);
  void unlink_idle(PageId page);

  const StepClock* clock_;
  std::vector<Info> pages_;
  std::vector<PageId> free_;  // the page returned last is taken first: its memory is the warmest
  std::vector<Held> held_;    // in the order of their steps, from `held_first_` on
  std::size_t held_first_ = 0;
  PageId idle_first_ = none<PageId>;
  PageId idle_last_ = none<PageId>;
  std::int32_t num_idle_ = 0;
  std::int32_t num_held_ = 0;
};

// Shares of many pages of one pool: a sequence's, in the order of its positions. Four bytes a page.
class [[nodiscard]] CachedPages {
 public:
  explicit CachedPages(PagePool* pool) : pool_(pool) {}
  CachedPages(CachedPages&& other) noexcept
      : pool_(other.pool_), pages_(std::move(other.pages_)), first_(std::exchange(other.first_, 0)) {
    other.pages_.clear();
  }
  CachedPages& operator=(CachedPages&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(pages_, other.pages_);
    std::swap(first_, other.first_);
    return *this;
  }
  ~CachedPages() { clear(false); }

  void reserve(std::int32_t num_pages) { pages_.reserve(static_cast<std::size_t>(num_pages)); }
  void add(TSRUN_OWNED CachedPage&& page) {
    pages_.push_back(page.page_);
    page.pool_ = nullptr;
  }
  // Positions up to `end` pages are not read any more: their shares end, the youngest step keeps the pages.
  void skip_to(std::int32_t end) {
    for (; first_ < end && first_ < this->end(); ++first_) drop(first_, false);
  }
  // Begins at page `first`: what is before it was never held.
  void start_at(std::int32_t first) {
    first_ = first;
    pages_.resize(static_cast<std::size_t>(first), none<PageId>);
  }
  void give_back(Landed) { clear(true); }

  std::int32_t first() const { return first_; }
  std::int32_t end() const { return static_cast<std::int32_t>(pages_.size()); }
  PageId operator[](std::int32_t index) const { return pages_[static_cast<std::size_t>(index)]; }

 private:
  void drop(std::int32_t index, bool landed) { pool_->drop_reader((*this)[index], landed); }
  inline void clear(bool landed);

  PagePool* pool_;
  std::vector<PageId> pages_;  // before `first_` of no meaning
  std::int32_t first_ = 0;
};

WritablePage::~WritablePage() {
  if (pool_ != nullptr) pool_->drop_writable(page_, false);
}

// Of a sequence's pages the first ones stay in the cache the longest.
void CachedPages::clear(bool landed) {
  pool_->drop_readers(std::span(pages_).subspan(static_cast<std::size_t>(first_)), landed);
  pages_.clear();
  first_ = 0;
}

CachedPage::~CachedPage() {
  if (pool_ != nullptr) pool_->drop_reader(page_, false);
}

// Not in which order pages will be taken: which of them are free is all that a decision depends on.
template <typename Visit>
void PagePool::describe(Visit&& visit) const {
  for (const Info& page : pages_) {
    visit(static_cast<std::int64_t>(page.use));
    visit(page.readers);
    visit(number(page.block));
    visit(std::max<std::int64_t>(number(page.until) - number(clock_->retired), 0));
  }
  for (PageId page = idle_first_; page != none<PageId>; page = info(page).next) visit(number(page));
  for (std::size_t index = held_first_; index < held_.size(); ++index) {
    const Held& held = held_[index];
    if (info(held.page).use != Use::held || info(held.page).until > held.step) continue;
    visit(number(held.step) - number(clock_->retired));
    visit(number(held.page));
  }
}

}  // namespace tsrun
