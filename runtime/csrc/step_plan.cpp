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
  starts.reserve(num_sequences + 1);
  tables.reserve(num_sequences * static_cast<std::size_t>(max_pages));
}

void StepPlan::clear(StepId next_step, std::int32_t next_table_width) {
  step = next_step;
  table_width = next_table_width;
  for (auto* array : {&ids, &positions, &slots, &starts, &lengths, &last, &tables}) array->clear();
  requests.clear();
  samples.clear();
  starts.push_back(0);
}

void StepPlan::add(const Chunk& chunk, const Request& request, const PageTable& pages) {
  for (std::int32_t position = chunk.begin; position < chunk.end; ++position) {
    ids.push_back(request.token(position));
    positions.push_back(position);
    slots.push_back(pages.slot(position));
  }
  requests.push_back(static_cast<std::int64_t>(chunk.request));
  starts.push_back(static_cast<std::int32_t>(ids.size()));
  lengths.push_back(chunk.end);
  last.push_back(starts.back() - 1);
  samples.push_back(chunk.samples);
  const std::size_t row = tables.size();
  tables.resize(row + static_cast<std::size_t>(table_width));
  for (std::int32_t index = 0; index < pages.size(); ++index) {
    tables[row + static_cast<std::size_t>(index)] = static_cast<std::int32_t>(pages.page(index));
  }
}

}  // namespace tsrun
