// Chooses tokens from logits. A token depends on the logits of its row, its sampler and its position: on nothing else,
// and on every machine in the same way.
#pragma once

#include <cstdint>

#include "logits.hpp"
#include "ranking.hpp"

namespace tsrun {

// How the tokens of one request are chosen. A filter applies to what those before it left, in the order that they have
// here. What else a request may ask for (penalties, biases), with what must be remembered for it, belongs here.
struct Sampler {
  double temperature = 0;  // 0: the largest logit, and of equals the first
  std::int64_t top_k = 0;  // 0: all
  double top_p = 1;        // the fewest most likely that have this share
  double min_p = 0;        // those at least so likely, where the most likely is 1
  std::uint64_t seed = 0;

  bool is_greedy() const { return temperature == 0; }
};

// What came of a row. What else may be asked about a token (log probabilities) belongs here.
struct Choice {
  std::int32_t token;  // -1: the largest logit is not finite, or one is NaN
};

// position: the token's place in its sequence; it has one random number, that of the seed and the position. room: for
// any row after any other.
Choice choose(const Logits& logits, const Sampler& sampler, std::uint64_t position, Ranking& room);

}  // namespace tsrun
