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
  // The tokens, as `Logits::changed` has them: of the next one, then of one that follows each draft.
  std::span<const std::uint32_t> allowed{};
  int num_log_probabilities = -1;  // of the likeliest tokens beside that of the chosen one; -1: not even that

  bool is_greedy() const { return temperature == 0; }
  // The largest logit of what is allowed decides, and nothing else is asked for.
  bool takes_first() const { return is_greedy() && !adjustment && num_log_probabilities < 0; }
  std::span<const std::uint32_t> allowed_after(std::int64_t num_drafts, std::int64_t width) const {
    return allowed.empty() ? allowed : allowed.subspan(num_drafts * words_of(width), words_of(width));
  }
};

inline constexpr std::int32_t not_finite = -1;  // the largest logit is not finite, or one is NaN
inline constexpr std::int32_t none_allowed = -2;
inline constexpr std::int32_t not_kept = -3;     // only the largest logit is there, and its token is not allowed
inline constexpr std::int32_t not_reached = -4;  // a draft before it did not come

inline bool allows(std::span<const std::uint32_t> allowed, std::int32_t id) {
  return allowed.empty() || (allowed[id / word_bits] >> (id % word_bits) & 1) != 0;
}

// What came of a row. log_probabilities: by the model's logits, before anything was done to them.
struct Choice {
  std::int32_t token;  // or, negative, why there is none
  std::optional<LogProbabilities> log_probabilities{};
};

// position: the token's place in its sequence; it has one random number, that of the seed and the position. room: for
// any row after any other. num_drafts: that came before it in the same step.
Choice choose(const Logits& logits, Sampler& sampler, std::uint64_t position, Ranking& room,
              std::int64_t num_drafts = 0);

}  // namespace tsrun
