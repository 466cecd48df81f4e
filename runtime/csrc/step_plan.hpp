// What one step runs, as the flat arrays that its program reads.
#pragma once

#include <cstdint>
#include <vector>

#include "ids.hpp"
#include "page_table.hpp"
#include "request.hpp"

namespace tsrun {

// Positions [begin, end) of one request run in the step: the plan's sequence `sequence`.
struct Chunk {
  RequestId request;
  std::int32_t begin;
  std::int32_t end;
  bool samples;          // it ends the tokens known so far, so its last row makes the next one
  std::size_t running;   // its place among the scheduler's running requests
  std::size_t sequence;  // its place in the plan
};

// The arrays are reserved once for the largest step and never move; T tokens, S sequences, P pages.
struct StepPlan {
  StepPlan(std::int32_t max_tokens, std::int32_t max_sequences, std::int32_t max_pages);

  void clear(StepId next_step, std::int32_t next_table_width);
  void add(const Chunk& chunk, const Request& request, const PageTable& pages);
  // Fills the step up to `num_tokens` with rows of no sequence, whose keys and values go to `slot`.
  void pad(std::int32_t num_tokens, std::int32_t slot);

  StepId step{};
  std::int32_t table_width = 0;         // P, the most pages of any sequence in the step
  std::vector<std::int64_t> requests;   // [S]
  std::vector<std::int32_t> ids;        // [T]
  std::vector<std::int32_t> positions;  // [T]
  std::vector<std::int32_t> slots;      // [T]
  std::vector<std::int32_t> spans;      // [S, 2], a sequence's first row and the one after its last
  std::vector<std::int32_t> lengths;    // [S]
  std::vector<std::int32_t> last;       // [S]
  std::vector<std::int32_t> tables;     // [S, P], zero beyond a sequence's pages
  std::vector<std::uint8_t> samples;    // [S]; bytes, since vector<bool> has no array to show
};

}  // namespace tsrun
