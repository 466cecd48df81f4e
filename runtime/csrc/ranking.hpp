// The logits of a row by their size, and of equals by their ids: filters keep a beginning of this ranking. It is never
// made: levels of weights tell where the beginning ends, and only logits of that level are compared with each other.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "logit_blocks.hpp"
#include "logits.hpp"

namespace tsrun {

// Where a beginning ends: it has the logits above `least`, and those equal to it before an id.
struct Cut {
  float least = -std::numeric_limits<float>::max();
  std::int64_t end_id = std::numeric_limits<std::int64_t>::max();
};

struct Ranked {
  std::int32_t id;
  float logit;
};

// What a row is good for: with no finite logit, all of which are -inf, or with one that is NaN or infinite, for
// nothing.
enum class RowState : std::uint8_t { usable, empty, not_finite };

class Ranking {
 public:
  // Takes up a row, whose memory must stay. The calls below are for usable ones.
  RowState read(const Logits& logits);

  // The id of the largest logit, and the logit.
  std::int32_t first() const;
  float largest() const { return largest_; }

  // The first so many, or all that are not -inf.
  void first(std::size_t count, std::vector<Ranked>& found) const;

  // Gives all logits weights, and keeps all; before the calls below. The first weighs 1.
  void set_temperature(double temperature);

  // Of what is kept: the first `count`; the fewest first ones with this share of its weight; what weighs so much.
  void keep_count(std::int64_t count);
  void keep_share(double share);
  void keep_weight(double least);

  // Of what is kept, by rising ids, the first whose weight and those before it are more than this share of all. For
  // shares below 1.
  std::int32_t at_share(double share);

  // The weight of all that is kept.
  double total();

 private:
  struct Candidate {
    float logit, weight;
    std::int32_t id;
  };
  struct BlockSum {
    std::int64_t block;
    double sum;
  };

  template <class Measure, class Goal>
  void shorten(Measure measure, Goal goal);
  template <class Measure>
  Cut cut_among(std::vector<Candidate>& candidates, double before, double goal, Measure measure) const;

  bool may_have(std::int64_t block, float weight) const;
  const Block<float>& weights_of(std::int64_t block);

  Logits logits_{nullptr, LogitType::f32, 0};
  float largest_ = 0;
  Weighing weighing_{};
  Cut cut_;
  std::vector<Block<float>> maxima_, peaks_;  // of each block the largest logit, and its weight
  std::vector<float> sorted_;
  std::vector<Candidate> candidates_;
  std::vector<BlockSum> sums_;
  Block<float> room_, weights_;
};

}  // namespace tsrun
