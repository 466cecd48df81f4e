// What a request asks to be done to its logits before anything else looks at them: biases of tokens, and penalties for
// tokens that its sequence has already.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "logits.hpp"

namespace tsrun {

// repetition: a logit of a token of prompt or answer is divided by it where it is positive, else multiplied. frequency:
// subtracted as often as the answer has the token; presence: once where it has it.
struct Penalties {
  double repetition = 1, frequency = 0, presence = 0;

  bool look_back() const { return repetition != 1 || frequency != 0 || presence != 0; }
};

// Of one request. It remembers what the answer has, token by token, so that a step costs as much as there are different
// tokens, whatever the vocabulary has.
class Adjustment {
 public:
  // prompt: its length says where the answer begins.
  Adjustment(const Penalties& penalties, const std::vector<std::pair<std::int32_t, double>>& biases,
             std::span<const std::int32_t> prompt);

  // The largest that it knows, -1: none.
  std::int32_t largest_id() const { return known_.empty() ? -1 : known_.back().id; }

  // For the token at this position of the sequence, which follows those that were taken: repetition first, then the
  // others and the biases, in f64 and rounded once. Valid until the next call.
  std::span<const Edit> edits(const Logits& logits, std::uint64_t position);

  // Tokens come in order. One at a position that has one already takes its place, and those after it are forgotten: a
  // step that was lost is run again.
  void take(std::int32_t token, std::uint64_t position);

 private:
  struct Known {
    std::int32_t id;
    std::int32_t count = 0;  // in the answer
    bool in_prompt = false;
    double bias = 0;
  };

  Known& known(std::int32_t id);
  void forget(std::uint64_t position);

  Penalties penalties_;
  std::uint64_t prompt_length_;
  std::vector<Known> known_;  // by rising ids
  std::vector<std::int32_t> answer_;
  std::vector<Edit> edits_;
};

}  // namespace tsrun
