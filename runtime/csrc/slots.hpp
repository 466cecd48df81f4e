// The slots of running requests: a slot is a row of the block tables, and has one owner.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "consumable.hpp"
#include "ids.hpp"

namespace tsrun {

class SlotPool;

class TSRUN_CONSUMABLE [[nodiscard("a slot that nobody owns is lost")]] SlotLease {
 public:
  SlotLease(SlotLease&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), slot_(other.slot_) {}
  SlotLease& operator=(SlotLease&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(slot_, other.slot_);
    return *this;
  }
  inline ~SlotLease();

  TSRUN_NOT_MOVED SlotId slot() const { return slot_; }

 private:
  friend class SlotPool;
  TSRUN_RETURNS_OWNED SlotLease(SlotPool* pool, SlotId slot) : pool_(pool), slot_(slot) {}

  SlotPool* pool_;
  SlotId slot_;
};

// Leases point at their pool: it stays where it is and outlives them.
class SlotPool {
 public:
  explicit SlotPool(std::int32_t num_slots) {
    free_.reserve(static_cast<std::size_t>(num_slots));
    for (std::int32_t slot = num_slots; slot-- > 0;) free_.push_back(SlotId{slot});
  }
  SlotPool(const SlotPool&) = delete;
  SlotPool& operator=(const SlotPool&) = delete;

  [[nodiscard("a slot that nobody owns is lost")]] std::optional<SlotLease> take() {
    if (free_.empty()) return std::nullopt;
    const SlotId slot = free_.back();
    free_.pop_back();
    return SlotLease(this, slot);
  }
  std::int32_t num_free() const { return static_cast<std::int32_t>(free_.size()); }

 private:
  friend struct Audit;  // tests/model/audit.hpp
  friend class SlotLease;
  std::vector<SlotId> free_;
};

SlotLease::~SlotLease() {
  if (pool_ != nullptr) pool_->free_.push_back(slot_);
}

}  // namespace tsrun
