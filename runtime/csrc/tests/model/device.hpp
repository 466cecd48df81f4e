// A device that does what step plans and transfers say, knows nothing else, and checks all that a step reads.
//
// A step runs as soon as it is planned, which is the earliest that it could read; what it read and wrote must then stay
// as it is until its commit, which is the latest. A lost step leaves garbage in all that it may have written, block
// tables included, and a transfer in all that it writes until it has ended well.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "model/audit.hpp"
#include "model/reference.hpp"

namespace tsrun::model {

// What a negative test makes go wrong; the checks must see it.
enum class Fault : std::uint8_t {
  none,
  forget_update,   // the last entry of each step's table updates is not applied
  forget_copy,     // of states
  forget_repeat,   // the updates of the step after a failure are not applied
  keep_positions,  // a step does not move back when drafts before it were rejected
  lose_load,       // a load that moved nothing is reported as done
  lose_store,      // a store likewise
  spoil_cached,    // a lost step writes to a page of the cache
  overcount,       // a commit reports drafts as accepted that were not
  lose_page,       // a free page is forgotten
  free_held_page,  // a page that a step under way uses is given to others
};

struct Job {
  const Reference* reference;
  std::int32_t known;  // tokens whose steps are committed
};

class Device {
 public:
  Device(const Limits& limits, Fault fault);

  // What a step did for one sequence.
  struct Sequence {
    RequestId request;
    std::int32_t begin;
    std::int32_t rows;
    std::int32_t new_tokens;  // 0 where it does not sample, else 1 and one more for each draft
    std::int32_t made;
    const Reference* reference;

    std::int32_t kept() const { return new_tokens > 1 ? rows - new_tokens + made : rows; }  // rows of accepted tokens
  };

  // jobs: of the plan's sequences. drafts: how many of what the device drafted for each sequence turn out right.
  void run(const StepPlan& plan, const Scheduler& scheduler, std::span<const Job> jobs,
           std::span<const std::int32_t> drafts);
  bool is_idle() const { return ran_.empty(); }
  std::int32_t num_running() const { return static_cast<std::int32_t>(ran_.size()); }
  StepId oldest() const { return ran_.front().step; }
  std::span<const Sequence> oldest_sequences() const { return ran_.front().sequences; }
  void end();
  void lose();

  void begin(const Transfer& transfer);
  void end(std::size_t transfer, bool ok);
  std::size_t num_transfers() const { return moves_.size(); }
  TransferId transfer(std::size_t at) const { return moves_[at].id; }

  // Between events: what nobody owns may hold anything, and what the cache has must hold what it says.
  void settle(const Scheduler& scheduler);

  template <typename Visit>
  void describe(const Scheduler& scheduler, Visit&& visit) const;

 private:
  using Cell = std::size_t;  // of all memory
  struct Entry {             // of a block table
    CacheGroupId group;
    std::int32_t row;
    std::int32_t index;
  };
  struct Ran {
    StepId step;
    std::int32_t block;  // rows of a group of ranks
    std::vector<Sequence> sequences;
    std::vector<std::pair<Cell, Content>> kept;
    std::vector<Cell> written;
    std::vector<Entry> updated;
  };
  struct Move {
    TransferId id;
    Transfer::Kind kind;
    RankGroupId ranks;
    std::vector<Transfer::Pair> pairs;
  };
  static constexpr std::int32_t unknown = -1;  // in a block table

  std::int32_t rows_of(CacheGroupId group) const { return layout_.is_paged(group) ? layout_.page_size : 1; }
  Cell cell(RankGroupId ranks, CacheGroupId group, std::int32_t page, std::int32_t row) const;
  Cell host_cell(RankGroupId ranks, HostPageId page, std::int32_t row) const;
  std::int32_t& table(CacheGroupId group, std::int32_t row, std::int32_t index);
  void apply_updates(const StepPlan& plan, Ran& ran);
  void apply_copies(const StepPlan& plan, const Scheduler& scheduler, Ran& ran);
  Sequence begin_sequence(const StepPlan& plan, std::size_t at, const Job& job, std::int32_t* shift) const;
  void read_ids(const StepPlan& plan, std::size_t at, const Job& job, std::int32_t drafts, Sequence& sequence) const;
  void check_rows(const StepPlan& plan, const Scheduler& scheduler) const;
  void run_paged(CacheGroupId group, const StepPlan& plan, std::size_t at, std::int32_t shift,
                 const Scheduler& scheduler, Ran& ran);
  void run_state(const StepPlan& plan, std::size_t at, const Scheduler& scheduler, Ran& ran);
  RankGroupId ranks_of(const StepPlan& plan, std::size_t at) const;

  const CacheLayout layout_;
  const std::int32_t num_rank_groups_;
  const std::int32_t max_step_tokens_;
  const std::int32_t columns_;
  const std::int32_t max_sequences_;
  const Fault fault_;
  bool has_failed_ = false;           // since the last step
  std::vector<std::size_t> offsets_;  // of a cache group in the memory of a group of ranks
  std::size_t memory_size_ = 0;
  std::vector<Content> memory_;
  std::vector<Content> host_;
  std::vector<std::int32_t> tables_;
  std::deque<Ran> ran_;  // the steps under way
  std::vector<Move> moves_;
};

template <typename Visit>
void Device::describe(const Scheduler& scheduler, Visit&& visit) const {
  for (std::int32_t ranks = 0; ranks < num_rank_groups_; ++ranks) {
    for (std::int32_t group = 0; group < layout_.num_groups(); ++group) {
      const PagePool& pool = Audit::cache(scheduler, RankGroupId{ranks}).pool(CacheGroupId{group});
      for (std::int32_t page = 0; page < pool.num_pages(); ++page) {
        // What the cache has is known from its blocks.
        if (!Audit::is_writable(pool, PageId{page}) && !Audit::is_held(pool, PageId{page})) continue;
        for (std::int32_t row = 0; row < rows_of(CacheGroupId{group}); ++row) {
          visit(static_cast<std::int64_t>(memory_[cell(RankGroupId{ranks}, CacheGroupId{group}, page, row)]));
        }
      }
    }
  }
  for (const std::int32_t page : tables_) visit(page);
  for (const Ran& ran : ran_) {
    for (const Sequence& sequence : ran.sequences) {
      visit(number(sequence.request));
      for (const std::int32_t value : {sequence.begin, sequence.rows, sequence.new_tokens, sequence.made}) visit(value);
    }
    for (const Entry& entry : ran.updated) visit(number(entry.group) * 1000000 + entry.row * 1000 + entry.index);
  }
  visit(has_failed_);
}

}  // namespace tsrun::model
