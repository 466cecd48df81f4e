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

struct Limits {
  std::int32_t num_pages;
  std::int32_t page_size;
  std::int32_t max_sequences;
  std::int32_t max_step_tokens;
  std::int32_t max_context;
};

// First come, first served. Throws std::invalid_argument for what can never run, std::logic_error for calls out of
// order. For one thread at a time.
class Scheduler {
 public:
  explicit Scheduler(const Limits& limits);
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
  std::int32_t num_free_pages() const { return pool_.num_free(); }
  std::int64_t preemptions() const { return preemptions_; }

 private:
  using Running = std::variant<Prefilling, Decoding>;

  static const Request& request_of(const Running& running);
  static const PageTable& pages_of(const Running& running);
  static PageTable& pages_of(Running& running);
  static std::int32_t num_cached(const Running& running);

  bool can_admit() const;
  bool reserve(std::size_t index, std::int32_t begin, std::int32_t end);
  std::int32_t plan_chunk(std::size_t index, std::int32_t budget);
  void preempt_youngest();
  void lay_out();
  std::optional<Running> advance(Running&& running, const Chunk& chunk, Token token);

  const Limits limits_;
  PagePool pool_;  // before every holder of a lease, so that it is destroyed after them
  std::deque<Waiting> waiting_;
  std::vector<Running> running_;  // oldest first; all older than those waiting
  std::vector<Draining> draining_;
  std::unordered_set<RequestId> live_;
  std::vector<Chunk> chunks_;  // what `plan_` lays out: chunk s is its sequence s
  StepPlan plan_;
  bool is_outstanding_ = false;
  std::int64_t num_steps_ = 0;
  std::int64_t preemptions_ = 0;
};

}  // namespace tsrun
