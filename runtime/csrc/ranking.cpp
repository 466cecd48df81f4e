#include "ranking.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

namespace tsrun {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// What each element of a block of blocks is about.
float& entry(std::vector<Block<float>>& blocks, std::int64_t i) { return blocks[i / block_size].of[i % block_size]; }
float entry(const std::vector<Block<float>>& blocks, std::int64_t i) {
  return blocks[i / block_size].of[i % block_size];
}

// How much of a measure each level has.
class Levels {
 public:
  template <class Measure>
  void add(const Block<std::int32_t>& levels, const Block<float>& weights, Measure measure) {
    for (std::int64_t i = 0; i < block_size; i += lanes)
      for (int lane = 0; lane < lanes; ++lane) sums_[lane][levels.of[i + lane]] += measure(weights.of[i + lane]);
  }

  double operator[](int level) const {
    return (sums_[0][level] + sums_[1][level]) + (sums_[2][level] + sums_[3][level]);
  }

  double total() const {
    double sum = 0;
    for (int level = 0; level < num_levels; ++level) sum += (*this)[level];
    return sum;
  }

 private:
  static constexpr int lanes = 4;  // so that hardly a sum waits for the one before it
  double sums_[lanes][num_levels] = {};
};

}  // namespace

RowState Ranking::read(const Logits& logits) {
  logits_ = logits;
  const std::int64_t num_blocks = logits.num_blocks();
  maxima_.resize((num_blocks + block_size - 1) / block_size);
  peaks_.resize(maxima_.size());
  std::fill_n(maxima_.back().of, block_size, -infinity);
  bool has_nan = false;
  for (std::int64_t block = 0; block < num_blocks; ++block)
    entry(maxima_, block) = maximum_of(logits.block(block, room_), has_nan);
  largest_ = -infinity;
  for (const Block<float>& some : maxima_) largest_ = std::max(largest_, maximum_of(some.of, has_nan));
  if (has_nan || largest_ == infinity) return RowState::not_finite;
  return largest_ == -infinity ? RowState::empty : RowState::usable;
}

std::int32_t Ranking::first() const {
  std::int64_t block = 0;
  while (entry(maxima_, block) != largest_) ++block;
  Block<float> room;
  const float* logits = logits_.block(block, room);
  return static_cast<std::int32_t>(block * block_size + (std::find(logits, logits + block_size, largest_) - logits));
}

void Ranking::first(std::size_t count, std::vector<Ranked>& found) const {
  const auto precedes = [](const Ranked& a, const Ranked& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  found.clear();  // a heap with the last of them on top
  Block<float> room;
  for (std::int64_t block = 0; block < logits_.num_blocks() && count > 0; ++block) {
    const auto goes_in = [&](float logit) {
      return logit != -infinity && (found.size() < count || logit > found.front().logit);
    };
    if (!goes_in(entry(maxima_, block))) continue;
    const float* logits = logits_.block(block, room);
    for (std::int64_t i = 0; i < block_size; ++i) {
      if (!goes_in(logits[i])) continue;
      if (found.size() == count) {
        std::ranges::pop_heap(found, precedes);
        found.pop_back();
      }
      found.push_back({static_cast<std::int32_t>(block * block_size + i), logits[i]});
      std::ranges::push_heap(found, precedes);
    }
  }
  std::ranges::sort_heap(found, precedes);
}

void Ranking::set_temperature(double temperature) {
  const double inverse = std::min(1 / temperature, static_cast<double>(std::numeric_limits<float>::max()));
  weighing_ = {largest_, static_cast<float>(inverse)};
  cut_ = {};
  for (std::size_t i = 0; i < maxima_.size(); ++i) weigh(maxima_[i].of, weighing_, peaks_[i]);
}

void Ranking::keep_count(std::int64_t count) {
  if (count >= logits_.width()) return;
  if (count < logits_.num_blocks()) {  // so many blocks have a logit of at least this size
    sorted_.clear();
    for (std::int64_t block = 0; block < logits_.num_blocks(); ++block) sorted_.push_back(entry(maxima_, block));
    std::nth_element(sorted_.begin(), sorted_.begin() + (count - 1), sorted_.end(), std::greater{});
    cut_.least = std::max(cut_.least, sorted_[count - 1]);
  }
  // A weight of 0 is never chosen, and need not be counted.
  shorten([](float weight) { return weight > 0 ? 1.0 : 0.0; }, [count](const Levels&) { return double(count); });
}

void Ranking::keep_share(double share) {
  shorten([](float weight) { return double{weight}; },
          [share](const Levels& levels) { return share * levels.total(); });
}

void Ranking::keep_weight(double least) { weighing_.least_weight = static_cast<float>(least); }

std::int32_t Ranking::at_share(double share) {
  sums_.clear();
  double total = 0;
  for (std::int64_t block = 0; block < logits_.num_blocks(); ++block) {
    if (!may_have(block, weighing_.least_weight)) continue;
    const double sum = sum_of(weights_of(block));
    if (sum > 0) sums_.push_back({block, sum});
    total += sum;
  }
  const double target = share * total;
  double before = 0;
  auto found = sums_.begin();
  while (found + 1 != sums_.end() && before + found->sum <= target) before += (found++)->sum;
  const Block<float>& weights = weights_of(found->block);
  std::int64_t last = 0;  // taken where all of its block, added up in this order, is not more than the target
  for (std::int64_t i = 0; i < block_size; ++i) {
    if (weights.of[i] == 0) continue;
    last = i;
    before += weights.of[i];
    if (before > target) break;
  }
  return static_cast<std::int32_t>(found->block * block_size + last);
}

double Ranking::total() {
  double total = 0;
  for (std::int64_t block = 0; block < logits_.num_blocks(); ++block)
    if (may_have(block, 0)) total += sum_of(weights_of(block));
  return total;
}

// Keep the shortest beginning whose measures add up to the goal.
template <class Measure, class Goal>
void Ranking::shorten(Measure measure, Goal goal_of) {
  Levels levels;
  Block<std::int32_t> level_of_each;
  for (std::int64_t block = 0; block < logits_.num_blocks(); ++block) {
    if (!may_have(block, 0)) continue;
    const Block<float>& weights = weights_of(block);
    levels_of(logits_.block(block, room_), weighing_, level_of_each);
    levels.add(level_of_each, weights, measure);
  }
  const double goal = goal_of(levels);
  double before = 0;
  int level = 0;
  while (level < num_levels && before + levels[level] < goal) before += levels[level++];
  if (level == num_levels) return;  // it takes all that is kept
  candidates_.clear();
  for (std::int64_t block = 0; block < logits_.num_blocks(); ++block) {
    if (!may_have(block, 0) || level_of(entry(maxima_, block), weighing_) > level) continue;
    const float* logits = logits_.block(block, room_);
    levels_of(logits, weighing_, level_of_each);
    bool has_some = false;
    for (const std::int32_t each : level_of_each.of) has_some |= each == level;
    if (!has_some) continue;
    const Block<float>& weights = weights_of(block);
    for (std::int64_t i = 0; i < block_size; ++i)
      if (level_of_each.of[i] == level && weights.of[i] > 0)
        candidates_.push_back({logits[i], weights.of[i], static_cast<std::int32_t>(block * block_size + i)});
  }
  cut_ = cut_among(candidates_, before, goal, measure);
}

// The cut within one level, by halving the range of its logits. before: what the levels above it have.
template <class Measure>
Cut Ranking::cut_among(std::vector<Candidate>& candidates, double before, double goal, Measure measure) const {
  while (true) {
    const auto smaller = [](const Candidate& a, const Candidate& b) { return a.logit < b.logit; };
    const auto [least, most] = std::ranges::minmax_element(candidates, smaller);
    const float low = least->logit, high = most->logit;
    if (low == high) break;
    const float half = low / 2 + high / 2, middle = half > low ? half : high;
    double upper = 0;
    for (const Candidate& candidate : candidates)
      if (candidate.logit >= middle) upper += measure(candidate.weight);
    const bool in_upper = before + upper >= goal;
    if (!in_upper) before += upper;
    std::erase_if(candidates, [&](const Candidate& some) { return (some.logit >= middle) != in_upper; });
  }
  for (const Candidate& candidate : candidates) {
    before += measure(candidate.weight);
    if (before >= goal) return {candidate.logit, candidate.id + 1};
  }
  return {candidates.back().logit, candidates.back().id + 1};
}

// False only if no logit of a block is kept and has so much weight. The largest logit's weight is the largest, up to
// rounding.
bool Ranking::may_have(std::int64_t block, float weight) const {
  const float peak = entry(peaks_, block);
  return entry(maxima_, block) >= cut_.least && peak > 0 && peak * 1.01f >= weight;
}

// Of what is kept; the others are 0.
const Block<float>& Ranking::weights_of(std::int64_t block) {
  const std::int64_t first = block * block_size,
                     ids_at_least = std::clamp<std::int64_t>(cut_.end_id - first, 0, block_size);
  const float* logits = logits_.block(block, room_);
  weighing_.least_logit = ids_at_least > 0 ? cut_.least : std::nextafter(cut_.least, infinity);
  weigh(logits, weighing_, weights_);
  for (std::int64_t i = ids_at_least; i < block_size && ids_at_least > 0; ++i)
    if (logits[i] == cut_.least) weights_.of[i] = 0;
  return weights_;
}

}  // namespace tsrun
