#include "adjustment.hpp"

#include <algorithm>

namespace tsrun {

Adjustment::Adjustment(const Penalties& penalties, const std::vector<std::pair<std::int32_t, double>>& biases,
                       std::span<const std::int32_t> prompt)
    : penalties_(penalties), prompt_length_(prompt.size()) {
  std::vector<std::int32_t> ids;
  if (penalties.repetition != 1) ids.assign(prompt.begin(), prompt.end());
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  for (const std::int32_t id : ids) known_.push_back({id, 0, true});
  for (const auto& [id, bias] : biases) known(id).bias = bias;
}

std::span<const Edit> Adjustment::edits(const Logits& logits, std::uint64_t position) {
  forget(position);
  edits_.clear();
  for (const Known& each : known_) {
    double logit = logits.stored(each.id);
    if (each.in_prompt || each.count > 0)
      logit = logit > 0 ? logit / penalties_.repetition : logit * penalties_.repetition;
    logit -= penalties_.frequency * each.count;
    logit -= each.count > 0 ? penalties_.presence : 0;
    edits_.push_back({each.id, static_cast<float>(logit + each.bias)});
  }
  return edits_;
}

void Adjustment::take(std::int32_t token, std::uint64_t position) {
  if (!penalties_.look_back()) return;
  forget(position);
  answer_.push_back(token);
  ++known(token).count;
}

Adjustment::Known& Adjustment::known(std::int32_t id) {
  const auto place = std::ranges::lower_bound(known_, id, {}, &Known::id);
  if (place != known_.end() && place->id == id) return *place;
  return *known_.insert(place, {id});
}

void Adjustment::forget(std::uint64_t position) {
  while (answer_.size() > position - prompt_length_) {
    --known(answer_.back()).count;
    answer_.pop_back();
  }
}

}  // namespace tsrun
