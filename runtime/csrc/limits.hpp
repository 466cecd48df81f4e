// What a scheduler may hold at once, and how it decides.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache_layout.hpp"
#include "ids.hpp"

namespace tsrun {

// A group of ranks keeps sequences of its own, in pages of its own, and has an equal block of a step's rows. The page
// past the last of a group of caches is nobody's: rows that pad a step are written there.
struct Limits {
  CacheLayout caches;
  std::int32_t max_sequences;
  std::int32_t max_step_tokens;
  std::int32_t max_context;
  std::int32_t num_rank_groups = 1;
  std::int32_t num_host_pages = 0;  // of each group of ranks
  std::int32_t depth = 1;           // steps under way at once

  std::int32_t page_size() const { return caches.page_size; }
};

struct Policy {
  bool prefix_cache = true;
  std::uint64_t name_space = 0;  // of the prefix cache: the model's digest
  bool keep_events = false;
  Seconds aging = 30;             // a waiting request rises by one priority class after so long
  double floor = 0;               // tokens per second that every decoding request keeps
  std::int32_t scored_rows = 64;  // of a step at most, in prompts that are scored
};

// Steps of `tokens` tokens or more are padded to a multiple, which num_rank_groups divides and max_step_tokens is one
// of.
struct Padding {
  std::int32_t tokens;
  std::int32_t multiple;
};

// All throw std::invalid_argument with what is wrong.
Limits checked(Limits limits);
std::vector<Padding> checked(std::vector<Padding> paddings, const Limits& limits);
Policy checked(Policy policy);
void check_finite(Seconds now);

// Why a request of this size can never run under these limits; empty when it can.
std::string refusal(const Limits& limits, std::int64_t prompt_tokens, std::int64_t max_new_tokens);

}  // namespace tsrun
