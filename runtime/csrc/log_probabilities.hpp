// How likely the model holds tokens: the logarithms of the softmax of a row.
#pragma once

#include <cstdint>
#include <vector>

#include "logits.hpp"
#include "ranking.hpp"

namespace tsrun {

// of_token: of the one that was asked for; top: of the likeliest, by their size, and of equals by their ids. The
// `logit` of each is its log probability.
struct LogProbabilities {
  float of_token = 0;
  std::vector<Ranked> top;
};

// Of a row with a finite largest logit: else NaN, and no top. As in sampling the weights are f32 and the sum f64, in an
// order that is the same on every machine.
LogProbabilities log_probabilities(const Logits& logits, std::int32_t token, std::size_t count, Ranking& room);

}  // namespace tsrun
