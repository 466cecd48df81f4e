#include "sampling.hpp"

#include "philox.hpp"

namespace tsrun {

Choice choose(const Logits& logits, const Sampler& sampler, std::uint64_t position, Ranking& room) {
  if (!room.read(logits)) return {-1};
  if (sampler.is_greedy()) return {room.first()};
  room.set_temperature(sampler.temperature);
  if (sampler.top_k > 0) room.keep_count(sampler.top_k);
  if (sampler.top_p < 1) room.keep_share(sampler.top_p);
  room.keep_weight(sampler.min_p);
  return {room.at_share(uniform(sampler.seed, position))};
}

}  // namespace tsrun
