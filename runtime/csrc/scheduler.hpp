// Decides which tokens of which requests run in the next step.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "entry.hpp"
#include "limits.hpp"
#include "prefix_cache.hpp"
#include "slots.hpp"
#include "step_plan.hpp"
#include "step_time.hpp"
#include "token_buffers.hpp"
#include "waiting_queue.hpp"

namespace tsrun {

// A running request as it stands. num_computed: tokens whose keys and values are in its pages, of committed steps.
struct Standing {
  RequestId request;
  State state;
  std::int32_t prompt_length;
  std::int32_t length;
  std::int32_t num_computed;
  std::int32_t num_pages;  // of the full group
};

// Throws std::invalid_argument for what can never run, std::logic_error for calls out of order. For one thread at a
// time.
class Scheduler {
 public:
  // paddings: in rising order of tokens, the first from 1 on.
  explicit Scheduler(const Limits& limits, const Policy& policy = {}, std::vector<Padding> paddings = {});
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;
  ~Scheduler();

  void submit(RequestId id, std::span<const Token> prompt, std::int32_t max_new_tokens,
              const RequestOptions& options = {}, Seconds now = 0);
  std::string refusal(std::int64_t prompt_tokens, std::int64_t max_new_tokens) const;

  // Tokens to verify with the next decode of a request, which waits for its token then.
  void draft(RequestId id, std::span<const Token> tokens);

  // At any moment; a request that has ended is no error, since the caller may learn of its end later.
  void abort(RequestId id);
  // For a request that has made a token, at any moment; one that ended by itself is no error.
  void finish(RequestId id);
  // No more requests are taken; those that are here go on.
  void drain() { is_draining_ = true; }

  // Null when nothing can run before the next submit, commit or transfer. The plan is valid until its commit.
  const StepPlan* plan(Seconds now = 0);
  // Steps are committed in order. Without counts one token a sequence; else counts[s] of them, 0 where it samples none.
  void commit(StepId step, std::span<const Token> tokens, std::optional<std::span<const std::int32_t>> counts = {},
              Seconds now = 0);
  // The step is lost, and with it the one after: what they would have written is computed again.
  void fail(StepId step);
  // The plan of a step under way; throws when `step` is none.
  const StepPlan& outstanding(StepId step) const;

  // Requests that ended by themselves since the last call, and why: their length or their deadline.
  std::vector<std::pair<RequestId, const char*>> take_ended() { return std::exchange(ended_, {}); }
  std::int32_t cached_tokens(RequestId id) const;

  // Transfers to start, and how each ended.
  std::vector<const Transfer*> take_transfers();
  void transferred(TransferId id, bool ok);
  std::vector<PageEvent> take_events();

  std::int32_t num_waiting() const { return queue_.size(); }
  std::int32_t num_running() const { return static_cast<std::int32_t>(running_.size()); }
  std::vector<Standing> running() const;  // who goes first, first
  std::int32_t num_free_pages() const;    // full ones, of all groups of ranks; cached ones that nobody reads included
  std::int32_t num_cached_pages() const;  // full ones that a prompt could find
  std::int64_t preemptions() const { return preemptions_; }

  // Of everything that later decisions depend on, for the model checker.
  std::uint64_t fingerprint() const;

 private:
  friend struct Audit;  // tests/model/audit.hpp

  struct Step {
    StepPlan plan;
    std::vector<Chunk> chunks;
    StepSize size;
    Seconds planned_at = 0;
  };
  struct PendingTransfer {
    Transfer transfer;
    bool is_new;
  };
  // Why the first of the queue was not admitted: until this has changed it is not tried again.
  struct Blocked {
    const Entry* entry = nullptr;
    std::int64_t num_left = 0;
    bool lacks_slot = false;
    CacheGroupId group{};
    std::int32_t available = 0;  // pages of the group that it lacks
  };

  Entry* find(RequestId id) const;
  User& user_of(UserId id);
  PrefixCache& cache(RankGroupId ranks) { return caches_[place(ranks)]; }
  std::int32_t& budget(const PrefixCache& cache) { return budgets_[place(cache_index(cache))]; }
  RankGroupId cache_index(const PrefixCache& cache) const;

  // scheduler.cpp
  std::int32_t num_outstanding() const {
    return static_cast<std::int32_t>(number(clock_.youngest) - number(clock_.retired));
  }
  Step& step_of(StepId id) { return steps_[static_cast<std::size_t>(number(id) % max_depth)]; }
  const Step& step_of(StepId id) const { return steps_[static_cast<std::size_t>(number(id) % max_depth)]; }
  void land(const Chunk& chunk, std::span<const Token> tokens);
  void end(Entry& entry, Event event);
  void leave_running(Entry& entry);
  void erase(Entry& entry);
  void store(Entry& entry);
  void expire(Seconds now);

  // planning.cpp
  bool is_filling(const Entry& entry) const;
  bool is_decoding(const Entry& entry) const;
  void count_due();
  void plan_decode(Entry& entry);
  void plan_fills();
  void plan_fill(Entry& entry);
  void add_chunk(Entry& entry, std::int32_t begin, std::int32_t rows, std::int32_t new_tokens, std::int32_t follows);
  std::int32_t reserve(Entry& entry, std::int32_t begin, std::int32_t end);
  bool make_room(Entry& entry);
  bool comes_back(const PrefixCache& own) const;
  void preempt(Entry& entry);
  void preempt_landed();
  std::int32_t block_for(std::int32_t rows) const;
  void lay_out();
  void copy_states(const Chunk& chunk, StepPlan& plan);

  // admission.cpp
  enum class Admission : std::uint8_t {
    look_again,  // somebody has started, or given something up
    pass,        // what this one needs is about to be computed: another may start
    none,        // nobody starts in this step
  };
  Admission admit_next(Entry& front);
  bool is_still_blocked(const Entry& front) const;
  void yield_seats();
  bool yields_seat(const Entry& front);
  bool holds_floor() const;
  Entry* choose(Entry& front, RankGroupId& ranks, bool& lacks_pages);
  bool computes(const Entry& other, std::int32_t page) const;
  bool still_waits(Entry& entry) const;
  bool is_computed_soon(Entry& entry, RankGroupId ranks, const Match& match);
  bool fits(const Entry& entry, RankGroupId ranks, const Match& match, Blocked& blocked) const;
  void seat(Entry& entry, RankGroupId ranks);

  const Limits limits_;
  const Policy policy_;
  const std::vector<Padding> paddings_;
  StepClock clock_;
  TokenBuffers buffers_;
  SlotPool slots_;                  // pools before every holder of a lease, so that they are destroyed after them
  std::deque<PrefixCache> caches_;  // of each group of ranks
  std::vector<PendingTransfer> transfers_;
  std::unordered_map<UserId, std::unique_ptr<User>> users_;
  std::unordered_map<RequestId, std::unique_ptr<Entry>> live_;
  WaitingQueue queue_;
  std::vector<Entry*> running_;  // who precedes first
  std::set<std::pair<Seconds, Entry*>> deadlines_;
  std::vector<Step> steps_;
  StepTime step_time_;
  Seconds committed_at_ = 0;

  // Of the step under planning.
  StepId planned_{};
  std::vector<std::int32_t> budgets_;  // rows left, of each group of ranks
  std::int32_t fill_rows_ = 0;         // that may still be prefilled without breaking the floor
  std::int32_t scored_rows_ = 0;       // left for prompts that are scored
  std::int32_t yielding_rows_ = 0;     // left for unfinished prompts of users with more requests than another
  std::int32_t fewest_running_ = 0;    // requests that a user has running
  std::int32_t fewest_ending_ = 0;     // and one who ends a prompt in this step
  StepSize size_;
  std::vector<Entry*> order_;
  std::vector<Entry*> fills_;
  std::vector<Entry*> candidates_;
  std::vector<const Entry*> passed_;    // fronts of lines that wait for what is being computed
  std::vector<std::int32_t> due_rows_;  // of decodes still to be planned, of each group of ranks
  bool has_prompts_ = false;            // to compute, or waiting
  std::vector<Match> matches_;          // of the chosen candidate, for each group of ranks
  std::vector<Match> tried_;

  TableUpdates updates_;
  Blocked blocked_;
  std::vector<std::pair<RequestId, const char*>> ended_;
  bool is_draining_ = false;
  std::int64_t num_submitted_ = 0;
  std::int64_t num_transfers_ = 0;
  std::int64_t num_left_ = 0;      // requests that stopped running, or that no more pages are promised to
  std::int64_t least_served_ = 0;  // where who comes anew starts
  std::int64_t preemptions_ = 0;
};

}  // namespace tsrun
