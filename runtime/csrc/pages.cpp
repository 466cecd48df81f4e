#include "pages.hpp"

#include <cassert>

namespace tsrun {

PagePool::PagePool(std::int32_t num_pages, const StepClock* clock)
    : clock_(clock), pages_(static_cast<std::size_t>(num_pages)) {
  free_.reserve(pages_.size());
  for (std::int32_t page = num_pages; page-- > 0;) free_.push_back(PageId{page});
}

WritablePage PagePool::take() {
  assert(has_free());
  const PageId page = free_.back();
  free_.pop_back();
  info(page).use = Use::writable;
  return WritablePage(this, page);
}

CachedPage PagePool::seal(WritablePage&& page, BlockId block) {
  assert(page.pool_ == this);
  Info& sealed = info(page.page_);
  sealed.use = Use::read;
  sealed.readers = 1;
  sealed.block = block;
  page.pool_ = nullptr;
  return CachedPage(this, page.page_);
}

CachedPage PagePool::share(PageId cached) {
  Info& shared = info(cached);
  assert(shared.use == Use::read || shared.use == Use::idle || shared.use == Use::held);
  if (shared.use == Use::idle) unlink_idle(cached);
  if (shared.use == Use::held) --num_held_;
  shared.use = Use::read;
  ++shared.readers;
  return CachedPage(this, cached);
}

void PagePool::give_back(WritablePage&& page, Landed) {
  page.pool_ = nullptr;
  drop_writable(page.page_, true);
}

void PagePool::give_back(CachedPage&& page, Landed) {
  page.pool_ = nullptr;
  drop_reader(page.page_, true);
}

void PagePool::forget(PageId page) {
  Info& forgotten = info(page);
  assert(forgotten.block != none<BlockId>);
  forgotten.block = none<BlockId>;
  if (forgotten.use == Use::idle) {
    unlink_idle(page);
    settle(page);
  }
}

void PagePool::retire() {
  while (held_first_ < held_.size() && held_[held_first_].step <= clock_->retired) {
    const PageId page = held_[held_first_++].page;
    // A page that found a reader meanwhile is not held any more, and one that lost it again is held by a later step.
    if (info(page).use != Use::held || info(page).until > clock_->retired) continue;
    --num_held_;
    settle(page);
  }
  if (2 * held_first_ >= held_.size()) {  // seldom moves anything, and keeps the queue from growing
    held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(held_first_));
    held_first_ = 0;
  }
}

void PagePool::drop_writable(PageId page, bool landed) {
  assert(info(page).use == Use::writable);
  info(page).block = none<BlockId>;
  end_use(page, landed);
}

void PagePool::drop_reader(PageId page, bool landed) {
  assert(info(page).use == Use::read && info(page).readers > 0);
  if (!landed) info(page).until = clock_->youngest;
  if (--info(page).readers == 0) end_use(page, landed);
}

void PagePool::drop_readers(std::span<const PageId> pages, bool landed) {
  for (std::size_t at = pages.size(); at-- > 0;) {
    // A long sequence's pages lie anywhere in memory.
    if (at >= 8) __builtin_prefetch(&info(pages[at - 8]), 1);
    drop_reader(pages[at], landed);
  }
}

// One reader may be done while a step of another, which ended before it, still reads: `until` remembers that.
void PagePool::end_use(PageId page, bool landed) {
  Info& used = info(page);
  if (!landed) used.until = clock_->youngest;
  if (used.until <= clock_->retired) {
    settle(page);
    return;
  }
  used.use = Use::held;
  used.until = clock_->youngest;
  ++num_held_;
  held_.push_back({clock_->youngest, page});
}

void PagePool::settle(PageId page) {
  if (info(page).block != none<BlockId>) {
    link_idle(page);
    return;
  }
  info(page).use = Use::free;
  free_.push_back(page);  // never allocates: reserved for every page
}

void PagePool::link_idle(PageId page) {
  Info& linked = info(page);
  linked.use = Use::idle;
  linked.previous = idle_last_;
  linked.next = none<PageId>;
  (idle_last_ == none<PageId> ? idle_first_ : info(idle_last_).next) = page;
  idle_last_ = page;
  ++num_idle_;
}

void PagePool::unlink_idle(PageId page) {
  Info& unlinked = info(page);
  (unlinked.previous == none<PageId> ? idle_first_ : info(unlinked.previous).next) = unlinked.next;
  (unlinked.next == none<PageId> ? idle_last_ : info(unlinked.next).previous) = unlinked.previous;
  --num_idle_;
}

}  // namespace tsrun
