// The pool of cache pages, and the lease that is the only way to hold one.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "ids.hpp"

namespace tsrun {

class PagePool;

// One page of one pool. It returns when the lease dies, so no path can leak a page or return it twice.
class PageLease {
 public:
  PageLease(PageLease&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), page_(other.page_) {}
  PageLease& operator=(PageLease&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(page_, other.page_);
    return *this;
  }
  inline ~PageLease();

  PageId page() const { return page_; }

 private:
  friend class PagePool;
  PageLease(PagePool* pool, PageId page) : pool_(pool), page_(page) {}

  PagePool* pool_;
  PageId page_;
};

// Leases point at their pool: it stays where it is and outlives them.
class PagePool {
 public:
  explicit PagePool(std::int32_t num_pages) {
    free_.reserve(static_cast<std::size_t>(num_pages));
    for (std::int32_t page = num_pages; page-- > 0;) free_.push_back(PageId{page});
  }
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  std::optional<PageLease> take() {
    if (free_.empty()) return std::nullopt;
    const PageId page = free_.back();
    free_.pop_back();
    return PageLease(this, page);
  }

  std::int32_t num_free() const { return static_cast<std::int32_t>(free_.size()); }

 private:
  friend class PageLease;
  std::vector<PageId> free_;  // the page returned last is taken first: its memory is the warmest
};

// Never allocates: the free list was reserved for every page.
PageLease::~PageLease() {
  if (pool_ != nullptr) pool_->free_.push_back(page_);
}

}  // namespace tsrun
