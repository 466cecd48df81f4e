// Pages in the host's memory, and the transfers that fill and read them.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "consumable.hpp"
#include "ids.hpp"
#include "pages.hpp"

namespace tsrun {

class HostPool;

// One page of host memory with one owner; it returns when the lease dies.
class TSRUN_CONSUMABLE [[nodiscard("a host page that nobody owns is lost")]] HostCopy {
 public:
  HostCopy(HostCopy&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), page_(other.page_) {}
  HostCopy& operator=(HostCopy&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(page_, other.page_);
    return *this;
  }
  inline ~HostCopy();

  TSRUN_NOT_MOVED HostPageId page() const { return page_; }

 private:
  friend class HostPool;
  TSRUN_RETURNS_OWNED HostCopy(HostPool* pool, HostPageId page) : pool_(pool), page_(page) {}

  HostPool* pool_;
  HostPageId page_;
};

class HostPool {
 public:
  explicit HostPool(std::int32_t num_pages) {
    for (std::int32_t page = num_pages; page-- > 0;) free_.push_back(HostPageId{page});
  }
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;

  [[nodiscard("a host page that nobody owns is lost")]] std::optional<HostCopy> take() {
    if (free_.empty()) return std::nullopt;
    const HostPageId page = free_.back();
    free_.pop_back();
    return HostCopy(this, page);
  }
  std::int32_t num_free() const { return static_cast<std::int32_t>(free_.size()); }

 private:
  friend struct Audit;  // tests/model/audit.hpp
  friend class HostCopy;
  std::vector<HostPageId> free_;
};

HostCopy::~HostCopy() {
  if (pool_ != nullptr) pool_->free_.push_back(page_);
}

// Pages on their way between device and host. All of a transfer arrive, or none counts.
struct Transfer {
  enum class Kind : std::uint8_t { store, load };
  struct Pair {
    PageId device;
    HostPageId host;
  };

  TransferId id;
  Kind kind;
  RankGroupId ranks;
  std::vector<Pair> pairs;
  std::vector<BlockId> blocks;
  std::vector<CachedPage> sources;  // of a store, the last page first: nobody evicts what is being read
  std::vector<HostCopy> targets;    // of a store
  RequestId request;                // of a load: who waits for it
};

}  // namespace tsrun
