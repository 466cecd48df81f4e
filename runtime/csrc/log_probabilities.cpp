#include "log_probabilities.hpp"

#include <cmath>
#include <limits>

namespace tsrun {

LogProbabilities log_probabilities(const Logits& logits, std::int32_t token, std::size_t count, Ranking& room) {
  if (room.read(logits) != RowState::usable) return {std::numeric_limits<float>::quiet_NaN(), {}};
  room.set_temperature(1);
  const double log_total = std::log(room.total()) + room.largest();
  const auto of = [log_total](float logit) { return static_cast<float>(logit - log_total); };
  LogProbabilities found{of(logits.stored(token)), {}};
  room.first(count, found.top);
  for (Ranked& each : found.top) each.logit = of(each.logit);
  return found;
}

}  // namespace tsrun
