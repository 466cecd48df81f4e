#include "step_plan.hpp"

#include <cstddef>

namespace tsrun {

StepPlan::StepPlan(std::int32_t max_tokens, std::int32_t max_sequences, std::int32_t max_pages) {
  const auto num_tokens = static_cast<std::size_t>(max_tokens);
  const auto num_sequences = static_cast<std::size_t>(max_sequences);
  for (auto* per_token : {&ids, &positions, &slots}) per_token->reserve(num_tokens);
  for (auto* per_sequence : {&lengths, &last}) per_sequence->reserve(num_sequences);
  requests.reserve(num_sequences);
  samples.reserve(num_sequences);
  spans.reserve(2 * num_sequences);
  tables.reserve(num_sequences * static_cast<std::size_t>(max_pages));
}

void StepPlan::clear(StepId next_step, std::int32_t next_table_width) {
  step = next_step;
  table_width = next_table_width;
  for (auto* array : {&ids, &positions, &slots, &spans, &lengths, &last, &tables}) array->clear();
  requests.clear();
  samples.clear();
}

void StepPlan::add(const Chunk& chunk, const Request& request, const PageTable& pages) {
  spans.push_back(static_cast<std::int32_t>(ids.size()));
  for (std::int32_t position = chunk.begin; position < chunk.end; ++position) {
    ids.push_back(request.token(position));
    positions.push_back(position);
    slots.push_back(pages.slot(position));
  }
  requests.push_back(static_cast<std::int64_t>(chunk.request));
  spans.push_back(static_cast<std::int32_t>(ids.size()));
  lengths.push_back(chunk.end);
  last.push_back(spans.back() - 1);
  samples.push_back(chunk.samples);
  const std::size_t row = tables.size();
  tables.resize(row + static_cast<std::size_t>(table_width));
  for (std::int32_t index = 0; index < pages.size(); ++index) {
    tables[row + static_cast<std::size_t>(index)] = static_cast<std::int32_t>(pages.page(index));
  }
}

void StepPlan::pad(std::int32_t num_tokens, std::int32_t slot) {
  const auto size = static_cast<std::size_t>(num_tokens);
  ids.resize(size, 0);
  positions.resize(size, 0);
  slots.resize(size, slot);
}

}  // namespace tsrun
