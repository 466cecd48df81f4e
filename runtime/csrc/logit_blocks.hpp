// What is done with every logit of a row, a block at a time: loops that compilers make vectors of.
#pragma once

#include <cstdint>
#include <limits>

#include "logits.hpp"

namespace tsrun {

// What turns a logit into a weight: 1 for the largest of its row, 0 where it is out of the question.
struct Weighing {
  float largest, inverse_temperature;
  float least_logit = -std::numeric_limits<float>::max(), least_weight = 0;  // smaller ones weigh nothing
};

// The largest logit of a block. has_nan: set where one is NaN, else left as it is.
float maximum_of(const float* logits, bool& has_nan);

// A weight has an error of some units of its last place.
void weigh(const float* logits, const Weighing& weighing, Block<float>& weights);

double sum_of(const Block<float>& weights);

// Logits by their size: a level is a sixteenth of what divides a weight by e, and the last level has all the rest. A
// larger logit is never of a later level.
inline constexpr int num_levels = 512;

inline int level_of(float logit, const Weighing& weighing) {
  const float level = (logit - weighing.largest) * weighing.inverse_temperature * -16;
  return static_cast<int>(level < num_levels - 1 ? level : num_levels - 1);
}

void levels_of(const float* logits, const Weighing& weighing, Block<std::int32_t>& levels);

}  // namespace tsrun
