// Random events without end, for configurations too large to search.
#pragma once

#include <cstdint>
#include <random>

#include "model/world.hpp"

namespace tsrun::model {

// What a device and its users may be, drawn at random: any groups of caches, host pages, groups of ranks, depth,
// drafts.
Configuration random_configuration(std::mt19937& random);

class Traffic {
 public:
  Traffic(const Configuration& configuration, std::uint32_t seed)
      : configuration_(configuration), random_(seed), world_(configuration, Fault::none) {}

  World& world() { return world_; }
  void happen();  // one event, whatever is possible
  // Nobody comes any more: every request ends within so many events. Throws Violation.
  void end(std::int32_t most_events);

 private:
  std::int32_t below(std::int32_t bound) {
    return static_cast<std::int32_t>(random_() % static_cast<std::uint32_t>(bound));
  }
  RequestSpec draw();

  const Configuration& configuration_;
  std::mt19937 random_;
  World world_;
};

}  // namespace tsrun::model
