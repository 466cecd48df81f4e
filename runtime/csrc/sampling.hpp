// Chooses tokens from logits. A token depends on the logits of its row, its sampler, its position and the tokens before
// it: on nothing else, and on every machine in the same way.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "adjustment.hpp"
#include "log_probabilities.hpp"
#include "logits.hpp"
#include "ranking.hpp"

namespace tsrun {

// How the tokens of one request are chosen. First its logits are adjusted, then those that are not allowed are taken
// out. A filter applies to what those before it left, in the order that they have here.
struct Sampler {
  double temperature = 0;  // 0: the largest logit, and of equals the first
  std::int64_t top_k = 0;  // 0: all
  double top_p = 1;        // the fewest most likely that have this share
  double min_p = 0;        // those at least so likely, where the most likely is 1
  std::uint64_t seed = 0;
  std::optional<Adjustment> adjustment{};
  std::span<const std::uint32_t> allowed{};  // the tokens, as `Logits::changed` has them
  int num_log_probabilities = -1;            // of the likeliest tokens beside that of the chosen one; -1: not even that

  bool is_greedy() const { return temperature == 0; }
  // The largest logit of what is allowed decides, and nothing else is asked for.
  bool takes_first() const { return is_greedy() && !adjustment && num_log_probabilities < 0; }
  bool allows(std::int32_t id) const {
    return allowed.empty() || (allowed[id / word_bits] >> (id % word_bits) & 1) != 0;
  }
};

inline constexpr std::int32_t not_finite = -1;  // the largest logit is not finite, or one is NaN
inline constexpr std::int32_t none_allowed = -2;
inline constexpr std::int32_t not_kept = -3;  // only the largest logit is there, and its token is not allowed

// What came of a row. log_probabilities: by the model's logits, before anything was done to them.
struct Choice {
  std::int32_t token;  // or, negative, why there is none
  std::optional<LogProbabilities> log_probabilities{};
};

// position: the token's place in its sequence; it has one random number, that of the seed and the position. room: for
// any row after any other.
Choice choose(const Logits& logits, Sampler& sampler, std::uint64_t position, Ranking& room);

}  // namespace tsrun
