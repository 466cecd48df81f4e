#include "sampling.hpp"

#include "philox.hpp"

namespace tsrun {

namespace {

std::int32_t pick(const Logits& logits, const Sampler& sampler, std::uint64_t position, Ranking& room) {
  const RowState state = room.read(logits);
  if (state == RowState::empty && logits.has_allowed()) return none_allowed;
  if (state != RowState::usable) return not_finite;
  if (sampler.is_greedy()) return room.first();
  room.set_temperature(sampler.temperature);
  if (sampler.top_k > 0) room.keep_count(sampler.top_k);
  if (sampler.top_p < 1) room.keep_share(sampler.top_p);
  room.keep_weight(sampler.min_p);
  return room.at_share(uniform(sampler.seed, position));
}

}  // namespace

Choice choose(const Logits& logits, Sampler& sampler, std::uint64_t position, Ranking& room, std::int64_t num_drafts) {
  std::span<const Edit> edits;
  if (sampler.adjustment) edits = sampler.adjustment->edits(logits, position);
  Choice choice{
      pick(logits.changed(edits, sampler.allowed_after(num_drafts, logits.width())), sampler, position, room)};
  if (choice.token < 0) return choice;
  if (sampler.adjustment) sampler.adjustment->take(choice.token, position);
  if (sampler.num_log_probabilities >= 0)
    choice.log_probabilities = log_probabilities(logits, choice.token, sampler.num_log_probabilities, room);
  return choice;
}

}  // namespace tsrun
