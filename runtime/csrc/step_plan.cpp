#include "step_plan.hpp"

#include <algorithm>
#include <cstddef>

namespace tsrun {

StepPlan::StepPlan(std::int32_t max_tokens, std::int32_t max_sequences, std::int32_t num_groups) {
  const auto num_tokens = static_cast<std::size_t>(max_tokens);
  const auto num_sequences = static_cast<std::size_t>(max_sequences);
  for (auto* per_token : {&ids, &positions}) per_token->reserve(num_tokens);
  slots.reserve(num_tokens * static_cast<std::size_t>(num_groups));
  for (auto* per_sequence : {&lengths, &last, &num_drafts, &follows, &table_rows}) per_sequence->reserve(num_sequences);
  requests.reserve(num_sequences);
  samples.reserve(num_sequences);
  spans.reserve(2 * num_sequences);
}

void StepPlan::clear(StepId next_step) {
  step = next_step;
  for (auto* array : {&spans, &lengths, &last, &num_drafts, &follows, &table_rows, &table_updates, &copies})
    array->clear();
  requests.clear();
  samples.clear();
}

// Rows of no sequence stay as they are set here: position 0, in the page past the last.
void StepPlan::size_for(std::int32_t num_tokens, const CacheLayout& layout) {
  const auto size = static_cast<std::size_t>(num_tokens);
  ids.assign(size, 0);
  positions.assign(size, 0);
  slots.resize(size * layout.groups.size());
  for (std::size_t at = 0; at < layout.groups.size(); ++at) {
    const bool is_paged = layout.is_paged(CacheGroupId{static_cast<std::int32_t>(at)});
    const std::int32_t nobodys = layout.groups[at].num_pages * (is_paged ? layout.page_size : 1);
    std::fill_n(slots.begin() + static_cast<std::ptrdiff_t>(at * size), size, nobodys);
  }
}

std::int32_t StepPlan::add(const Chunk& chunk, std::int32_t row) {
  const Entry& entry = *chunk.entry;
  const Request& request = entry.request();
  const PageTable& pages = entry.seat().pages;
  const CacheLayout& layout = pages.cache().layout();
  const std::int32_t end = row + chunk.rows;
  const std::int32_t length = request.length();
  for (std::int32_t at = 0; at < chunk.rows; ++at) {
    const std::int32_t position = chunk.begin + at;
    Token id = drafted;
    if (position < length && chunk.follows < 0) {
      id = request.tokens()[static_cast<std::size_t>(position)];
    } else if (at == 0) {
      id = ~chunk.follows;
    } else if (static_cast<std::size_t>(at) <= entry.drafts.size()) {
      id = entry.drafts[static_cast<std::size_t>(at) - 1];
    }
    ids[static_cast<std::size_t>(row + at)] = id;
    positions[static_cast<std::size_t>(row + at)] = position;
  }
  for (std::int32_t group = 0; group < layout.num_groups(); ++group) {
    std::int32_t* of_group = &slots[static_cast<std::size_t>(group) * ids.size()];
    for (std::int32_t at = 0; at < chunk.rows; ++at) {
      of_group[row + at] = layout.is_paged(CacheGroupId{group}) ? pages.slot(CacheGroupId{group}, chunk.begin + at)
                                                                : number(pages.state());
    }
  }
  requests.push_back(number(entry.id));
  spans.push_back(row);
  spans.push_back(end);
  lengths.push_back(chunk.begin + chunk.rows);
  last.push_back(end - 1);
  num_drafts.push_back(std::max(0, chunk.new_tokens - 1));
  follows.push_back(chunk.follows);
  table_rows.push_back(number(entry.seat().slot.slot()));
  samples.push_back(chunk.new_tokens > 0);
  return end;
}

}  // namespace tsrun
