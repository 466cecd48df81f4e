// Searches every order of events that a configuration allows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/world.hpp"

namespace tsrun::model {

struct Found {
  std::string what;         // the invariant that does not hold
  std::vector<Event> path;  // to it
};

struct Searched {
  std::int64_t states = 0;
  std::int64_t transitions = 0;
  std::size_t depth = 0;
  bool is_complete = true;  // else `most_states` were seen before all were
  double seconds = 0;
  std::optional<Found> found;
};

Searched explore(const Configuration& configuration, Fault fault, std::int64_t most_states, bool prints_progress);

// The path without the events that the same violation does not need.
Found shortened(const Configuration& configuration, Fault fault, Found found);

}  // namespace tsrun::model
