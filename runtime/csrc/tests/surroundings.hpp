// What a request needs around it in a test, and the proof that it is in no step.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "check.hpp"
#include "request.hpp"

namespace tsrun::tests {

struct Surroundings {
  StepClock clock;
  TokenBuffers buffers;
  PrefixCache cache{{4, {{CacheKind::full, 4}}}, RankGroupId{0}, 0, &clock};
  SlotPool slots{1};
  TableUpdates updates;

  SeatOwner seat() {
    SlotLease slot = *slots.take();
    const SlotId row = slot.slot();
    return std::make_unique<Seat>(Seat{.slot = std::move(slot), .pages = PageTable(&cache, row, true)});
  }
  Prefilling prefilling() {
    const std::vector<Token> prompt{10, 11, 12, 13, 14};
    auto request = std::make_unique<Request>(RequestId{7}, prompt, 2, 0, hash_root(0, 0), &buffers);
    SeatOwner taken = seat();
    CHECK(taken->pages.extend(updates) && taken->pages.extend(updates));
    return admit(Waiting{std::move(request)}, std::move(taken));
  }
  std::int32_t num_free() const { return cache.pool(full_group).num_available(); }
};

// No step is under way for a request that never took off.
inline Landed landed() {
  Surroundings around;
  return *around.seat()->flights.landed();
}

}  // namespace tsrun::tests
