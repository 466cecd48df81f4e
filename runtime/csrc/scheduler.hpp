// Decides which tokens of which requests run in the next step.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <unordered_set>
#include <variant>
#include <vector>

#include "ids.hpp"
#include "pages.hpp"
#include "request.hpp"
#include "step_plan.hpp"

namespace tsrun {

// A group is the ranks that keep sequences of their own, in pages of their own: each has `num_pages`, and an equal
// block of a step's rows. Page `num_pages` is nobody's: rows that pad a step are written there.
struct Limits {
  std::int32_t num_pages;
  std::int32_t page_size;
  std::int32_t max_sequences;
  std::int32_t max_step_tokens;
  std::int32_t max_context;
  std::int32_t num_groups = 1;
};

// Steps of `tokens` tokens or more are padded to a multiple, which num_groups divides and max_step_tokens is one of.
struct Padding {
  std::int32_t tokens;
  std::int32_t multiple;
};

// First come, first served. Throws std::invalid_argument for what can never run, std::logic_error for calls out of
// order. For one thread at a time.
class Scheduler {
 public:
  // paddings: in rising order of tokens, the first from 1 on.
  explicit Scheduler(const Limits& limits, std::vector<Padding> paddings = {});
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  void submit(RequestId id, std::span<const Token> prompt, std::int32_t max_new_tokens);

  // At any moment; a request that has ended is no error, since the caller may learn of its end later.
  void abort(RequestId id);

  // Between commit and plan, for a request that has made a token; one that ended by itself is no error.
  void finish(RequestId id);

  // Null when nothing waits or runs. The plan is valid until its commit.
  const StepPlan* plan();
  void commit(StepId step, std::span<const Token> tokens);

  // The plan of the step under way; throws when `step` is not that step.
  const StepPlan& outstanding(StepId step) const;

  std::int32_t num_waiting() const { return static_cast<std::int32_t>(waiting_.size()); }
  std::int32_t num_running() const { return static_cast<std::int32_t>(running_.size()); }
  std::int32_t num_free_pages() const;  // of all groups
  std::int64_t preemptions() const { return preemptions_; }

 private:
  using Running = std::variant<Prefilling, Decoding>;

  static const Request& request_of(const Running& running);
  static const PageTable& pages_of(const Running& running);
  static PageTable& pages_of(Running& running);
  static std::int32_t num_cached(const Running& running);

  std::optional<GroupId> group_for_next() const;
  bool reserve(std::size_t index, std::int32_t begin, std::int32_t end);
  bool plan_chunk(std::size_t index);
  std::size_t preempt_youngest(GroupId group);
  PagePool& pool(GroupId group) { return pools_[static_cast<std::size_t>(group)]; }
  std::int32_t& budget(GroupId group) { return budgets_[static_cast<std::size_t>(group)]; }
  std::int32_t block_for(std::int32_t rows) const;
  void lay_out();
  std::optional<Running> advance(Running&& running, const Chunk& chunk, Token token);

  const Limits limits_;
  const std::vector<Padding> paddings_;
  std::deque<PagePool> pools_;  // before every holder of a lease, so that they are destroyed after them
  std::deque<Waiting> waiting_;
  std::vector<Running> running_;  // in order of admission
  std::vector<Draining> draining_;
  std::unordered_set<RequestId> live_;
  std::vector<std::int32_t> budgets_;  // rows that the step under planning has left, of each group
  std::vector<Chunk> chunks_;          // what `plan_` lays out, in the order of `running_`
  StepPlan plan_;
  bool is_outstanding_ = false;
  std::int64_t num_steps_ = 0;
  std::int64_t preemptions_ = 0;
};

}  // namespace tsrun
