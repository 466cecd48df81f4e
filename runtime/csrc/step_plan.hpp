// What one step runs, as the flat arrays that its program reads.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "cache_layout.hpp"
#include "entry.hpp"
#include "ids.hpp"

namespace tsrun {

// In `ids`: a token that the device drafted for the sequence's table row.
inline constexpr Token drafted = std::numeric_limits<Token>::min();

// Positions [begin, begin + rows) of one request run in the step.
struct Chunk {
  Entry* entry;
  std::int32_t begin;
  std::int32_t rows;
  std::int32_t new_tokens;  // at most so many come out; 0: it does not end the tokens known so far
  std::int32_t follows;     // its sequence in the step before, whose tokens are not known yet; -1: they are
};

// The arrays are reserved once for the largest step; T tokens, S sequences, G groups of caches.
struct StepPlan {
  StepPlan(std::int32_t max_tokens, std::int32_t max_sequences, std::int32_t num_groups);

  void clear(StepId next_step);
  // The step's rows are known before the first is added, since slots are [G, T].
  void size_for(std::int32_t num_tokens, const CacheLayout& layout);
  // At row `row`; returns the row after its last.
  std::int32_t add(const Chunk& chunk, std::int32_t row);

  StepId step{};
  std::vector<std::int64_t> requests;       // [S]
  std::vector<std::int32_t> ids;            // [T]
  std::vector<std::int32_t> positions;      // [T]
  std::vector<std::int32_t> slots;          // [G, T]
  std::vector<std::int32_t> spans;          // [S, 2], a sequence's first row and the one after its last
  std::vector<std::int32_t> lengths;        // [S]
  std::vector<std::int32_t> last;           // [S]
  std::vector<std::int32_t> num_drafts;     // [S]
  std::vector<std::int32_t> follows;        // [S]
  std::vector<std::int32_t> table_rows;     // [S]
  std::vector<std::int32_t> table_updates;  // [U, 4]: group, row, index, page
  std::vector<std::int32_t> copies;         // [C, 3]: state group, source page, target page
  std::vector<std::uint8_t> samples;        // [S]; bytes, since vector<bool> has no array to show
};

}  // namespace tsrun
