#include "model/device.hpp"

#include <algorithm>

namespace tsrun::model {

Device::Device(const Limits& limits, Fault fault)
    : layout_(limits.caches),
      num_rank_groups_(limits.num_rank_groups),
      max_step_tokens_(limits.max_step_tokens),
      columns_(static_cast<std::int32_t>(pages_for(limits.max_context, limits.page_size()))),
      max_sequences_(limits.max_sequences),
      fault_(fault) {
  for (std::int32_t group = 0; group < layout_.num_groups(); ++group) {
    offsets_.push_back(memory_size_);
    const std::int32_t num_pages = layout_[CacheGroupId{group}].num_pages;
    memory_size_ += static_cast<std::size_t>(num_pages * rows_of(CacheGroupId{group}));
  }
  memory_.resize(memory_size_ * static_cast<std::size_t>(num_rank_groups_), garbage);
  host_.resize(static_cast<std::size_t>(limits.num_host_pages * layout_.page_size * num_rank_groups_), garbage);
  tables_.resize(static_cast<std::size_t>(layout_.num_groups() * max_sequences_ * columns_), unknown);
}

Device::Cell Device::cell(RankGroupId ranks, CacheGroupId group, std::int32_t page, std::int32_t row) const {
  return place(ranks) * memory_size_ + offsets_[place(group)] + static_cast<std::size_t>(page * rows_of(group) + row);
}

Device::Cell Device::host_cell(RankGroupId ranks, HostPageId page, std::int32_t row) const {
  const std::size_t of_ranks = host_.size() / static_cast<std::size_t>(num_rank_groups_);
  return place(ranks) * of_ranks + static_cast<std::size_t>(number(page) * layout_.page_size + row);
}

std::int32_t& Device::table(CacheGroupId group, std::int32_t row, std::int32_t index) {
  if (row < 0 || row >= max_sequences_ || index < 0 || index >= columns_)
    broken("no entry ", index, " in table row ", row);
  return tables_[static_cast<std::size_t>((number(group) * max_sequences_ + row) * columns_ + index)];
}

RankGroupId Device::ranks_of(const StepPlan& plan, std::size_t at) const {
  const auto block = static_cast<std::int32_t>(plan.ids.size()) / num_rank_groups_;
  return RankGroupId{plan.spans[2 * at] / block};
}

void Device::apply_updates(const StepPlan& plan, Ran& ran) {
  std::size_t num_applied = plan.table_updates.size() / 4;
  if (fault_ == Fault::forget_update && num_applied > 0) --num_applied;
  if (fault_ == Fault::forget_repeat && has_failed_) num_applied = 0;
  for (std::size_t at = 0; at < num_applied; ++at) {
    const std::int32_t* update = &plan.table_updates[4 * at];
    const Entry entry{CacheGroupId{update[0]}, update[1], update[2]};
    if (update[3] < 0 || update[3] >= layout_[entry.group].num_pages) broken("a table update names page ", update[3]);
    table(entry.group, entry.row, entry.index) = update[3];
    ran.updated.push_back(entry);
  }
}

void Device::apply_copies(const StepPlan& plan, const Scheduler& scheduler, Ran& ran) {
  if (fault_ == Fault::forget_copy) return;
  for (std::size_t at = 0; at < plan.copies.size(); at += 3) {
    const CacheGroupId group{plan.copies[at]};
    if (layout_.is_paged(group)) broken("a copy in cache group ", number(group), ", which has no states");
    // A state belongs to one group of ranks; the copy does not say which, since only one has both pages at once.
    if (num_rank_groups_ > 1) broken("copies are modelled for one group of ranks");
    if (!Audit::is_writable(Audit::cache(scheduler, RankGroupId{0}).pool(group), PageId{plan.copies[at + 2]})) {
      broken("a copy writes to state page ", plan.copies[at + 2], ", which has no writer");
    }
    const Cell target = cell(RankGroupId{0}, group, plan.copies[at + 2], 0);
    memory_[target] = memory_[cell(RankGroupId{0}, group, plan.copies[at + 1], 0)];
    ran.written.push_back(target);
  }
}

void Device::check_rows(const StepPlan& plan, const Scheduler& scheduler) const {
  const auto num_rows = static_cast<std::int32_t>(plan.ids.size());
  if (num_rows > max_step_tokens_ || num_rows % num_rank_groups_ != 0) broken("a step of ", num_rows, " rows");
  const std::int32_t block = num_rows / num_rank_groups_;
  std::vector<bool> is_used(plan.ids.size());
  for (std::size_t at = 0; at < plan.requests.size(); ++at) {
    const std::int32_t begin = plan.spans[2 * at];
    const std::int32_t end = plan.spans[2 * at + 1];
    if (begin >= end || end > num_rows || (end - 1) / block != begin / block) broken("rows ", begin, " to ", end);
    if (plan.last[at] != end - 1) broken("row ", plan.last[at], " as the last of rows to ", end);
    for (std::int32_t row = begin; row < end; ++row) {
      if (is_used[static_cast<std::size_t>(row)]) broken("row ", row, " is of two sequences");
      is_used[static_cast<std::size_t>(row)] = true;
    }
    for (std::size_t other = 0; other < at; ++other) {
      if (plan.requests[other] == plan.requests[at]) broken("request ", plan.requests[at], " is twice in a step");
      if (plan.table_rows[other] == plan.table_rows[at])
        broken("table row ", plan.table_rows[at], " is twice in a step");
    }
    const tsrun::Entry* entry = Audit::entry(scheduler, RequestId{plan.requests[at]});
    if (entry == nullptr || !entry->is_running())
      broken("request ", plan.requests[at], " is in a step, and does not run");
    const PrefixCache& own = Audit::cache(scheduler, ranks_of(plan, at));
    if (&entry->seat().pages.cache() != &own) broken("request ", plan.requests[at], " is in the rows of other ranks");
  }
  for (std::size_t row = 0; row < plan.ids.size(); ++row) {
    if (is_used[row]) continue;
    for (std::int32_t group = 0; group < layout_.num_groups(); ++group) {
      const std::int32_t nobodys = layout_[CacheGroupId{group}].num_pages * rows_of(CacheGroupId{group});
      if (plan.slots[static_cast<std::size_t>(group) * plan.ids.size() + row] != nobodys)
        broken("padding writes to a page");
    }
  }
}

// Where the rows of a sequence are, now that the outcome of the step before is known.
Device::Sequence Device::begin_sequence(const StepPlan& plan, std::size_t at, const Job& job,
                                        std::int32_t* shift) const {
  const std::int32_t first = plan.spans[2 * at];
  Sequence sequence{RequestId{plan.requests[at]},
                    plan.positions[static_cast<std::size_t>(first)],
                    plan.spans[2 * at + 1] - first,
                    0,
                    0,
                    job.reference};
  *shift = 0;
  std::int32_t num_known = job.known;
  if (plan.follows[at] >= 0) {
    if (ran_.empty()) broken("request ", plan.requests[at], " follows a step that is known");
    const auto followed = static_cast<std::size_t>(plan.follows[at]);
    if (followed >= ran_.back().sequences.size()) broken("sequence ", followed, " is not in the step before");
    const Sequence& before = ran_.back().sequences[followed];
    if (before.request != sequence.request) broken("request ", plan.requests[at], " follows another");
    if (before.new_tokens == 0) broken("request ", plan.requests[at], " follows a step that makes no token for it");
    if (fault_ != Fault::keep_positions) *shift = before.new_tokens - before.made;
    sequence.begin -= *shift;
    num_known = before.begin + before.kept() + 1;
    if (sequence.begin != num_known - 1) broken("request ", plan.requests[at], " goes on at position ", sequence.begin);
  }
  const std::int32_t end = sequence.begin + sequence.rows;
  if (plan.lengths[at] - *shift != end) broken("a length of ", plan.lengths[at], " for a sequence that ends at ", end);
  if (end >= num_known) sequence.new_tokens = 1 + end - num_known;
  if ((plan.samples[at] != 0) != (sequence.new_tokens > 0)) broken("request ", plan.requests[at], " samples at ", end);
  const auto most = static_cast<std::int32_t>(job.reference->tokens.size());
  if (end + 1 > most) broken("request ", plan.requests[at], " of ", most, " tokens makes one after ", end);
  return sequence;
}

// Checks the tokens that are known, and finds out how many of the drafted ones are right.
void Device::read_ids(const StepPlan& plan, std::size_t at, const Job& job, std::int32_t drafts,
                      Sequence& sequence) const {
  const std::int32_t first = plan.spans[2 * at];
  const std::int32_t num_given = sequence.new_tokens > 0 ? sequence.rows - (sequence.new_tokens - 1) : sequence.rows;
  std::int32_t num_right = 0;
  for (std::int32_t row = 0; row < sequence.rows; ++row) {
    if (plan.positions[static_cast<std::size_t>(first + row)] - plan.positions[static_cast<std::size_t>(first)] !=
        row) {
      broken("positions of request ", plan.requests[at], " are not in order");
    }
    const Token id = plan.ids[static_cast<std::size_t>(first + row)];
    const Token right = job.reference->tokens[static_cast<std::size_t>(sequence.begin + row)];
    if (row < num_given) {
      const bool is_right = plan.follows[at] >= 0 ? id == ~plan.follows[at] : id == right;
      if (!is_right)
        broken("request ", plan.requests[at], " has token ", id, " at ", sequence.begin + row, ", not ", right);
    } else {
      const bool is_right = id == drafted ? row - num_given < drafts : id == right;
      if (is_right && num_right == row - num_given) ++num_right;
    }
  }
  if (sequence.new_tokens > 0) sequence.made = 1 + num_right;
}

void Device::run_paged(CacheGroupId group, const StepPlan& plan, std::size_t at, std::int32_t shift,
                       const Scheduler& scheduler, Ran& ran) {
  const Sequence& sequence = ran.sequences[at];
  const RankGroupId ranks = ranks_of(plan, at);
  const PagePool& pool = Audit::cache(scheduler, ranks).pool(group);
  const std::int32_t size = layout_.page_size;
  const auto page_of = [&](std::int32_t position) {
    const std::int32_t page = table(group, plan.table_rows[at], position / size);
    if (page == unknown) {
      broken("request ", plan.requests[at], ": entry ", position / size, " of its table of cache group ", number(group),
             " is not set");
    }
    return page;
  };
  const CacheGroup& spec = layout_[group];
  const std::int32_t first = spec.kind == CacheKind::full ? 0 : std::max(0, sequence.begin - spec.extent + 1);
  for (std::int32_t position = first; position < sequence.begin; ++position) {
    const Cell read = cell(ranks, group, page_of(position), position % size);
    const Content content = sequence.reference->contents[static_cast<std::size_t>(position)];
    if (memory_[read] != content) {
      broken("request ", plan.requests[at], " reads page ", page_of(position), " of cache group ", number(group),
             " for position ", position, ", and finds ", memory_[read] == garbage ? "garbage" : "what is not its own");
    }
    ran.kept.emplace_back(read, content);
  }
  for (std::int32_t row = 0; row < sequence.rows; ++row) {
    const std::int32_t position = sequence.begin + row;
    const std::int32_t page = page_of(position);
    const auto planned = static_cast<std::size_t>(plan.spans[2 * at] + row);
    const std::int32_t slot = plan.slots[place(group) * plan.ids.size() + planned];
    if (shift == 0 && slot != page * size + position % size)
      broken("slot ", slot, " for position ", position, " in page ", page);
    if (!Audit::is_writable(pool, PageId{page}))
      broken("request ", plan.requests[at], " writes to page ", page, ", which is not its own");
    const Cell written = cell(ranks, group, page, position % size);
    const bool is_right = row < sequence.kept();
    const Content content = is_right ? sequence.reference->contents[static_cast<std::size_t>(position)] : garbage;
    memory_[written] = content;
    ran.written.push_back(written);
    if (is_right) ran.kept.emplace_back(written, content);
  }
}

void Device::run_state(const StepPlan& plan, std::size_t at, const Scheduler& scheduler, Ran& ran) {
  const Sequence& sequence = ran.sequences[at];
  const CacheGroupId group = layout_.state_group();
  const RankGroupId ranks = ranks_of(plan, at);
  const std::int32_t page = table(group, plan.table_rows[at], 0);
  if (page == unknown) broken("request ", plan.requests[at], " has no state page in its table");
  for (std::int32_t row = plan.spans[2 * at]; row < plan.spans[2 * at + 1]; ++row) {
    const std::int32_t slot = plan.slots[place(group) * plan.ids.size() + static_cast<std::size_t>(row)];
    if (slot != page) broken("slot ", slot, " for the state in page ", page);
  }
  if (!Audit::is_writable(Audit::cache(scheduler, ranks).pool(group), PageId{page}))
    broken("state page ", page, " is not its own");
  Content& state = memory_[cell(ranks, group, page, 0)];
  const std::vector<Content>& contents = sequence.reference->contents;
  if (sequence.begin > 0 && state != contents[static_cast<std::size_t>(sequence.begin - 1)]) {
    broken("request ", plan.requests[at], " goes on at ", sequence.begin, " from a state of another prefix");
  }
  if (sequence.new_tokens > 1) broken("drafts would overwrite a state");
  state = contents[static_cast<std::size_t>(sequence.begin + sequence.rows - 1)];
  ran.written.push_back(cell(ranks, group, page, 0));
}

void Device::run(const StepPlan& plan, const Scheduler& scheduler, std::span<const Job> jobs,
                 std::span<const std::int32_t> drafts) {
  Ran ran{plan.step, static_cast<std::int32_t>(plan.ids.size()) / num_rank_groups_, {}, {}, {}, {}};
  check_rows(plan, scheduler);
  apply_updates(plan, ran);
  apply_copies(plan, scheduler, ran);
  has_failed_ = false;
  for (std::size_t at = 0; at < plan.requests.size(); ++at) {
    std::int32_t shift = 0;
    Sequence sequence = begin_sequence(plan, at, jobs[at], &shift);
    read_ids(plan, at, jobs[at], drafts[at], sequence);
    ran.sequences.push_back(sequence);
    for (std::int32_t group = 0; group < layout_.num_groups(); ++group) {
      if (layout_.is_paged(CacheGroupId{group})) run_paged(CacheGroupId{group}, plan, at, shift, scheduler, ran);
    }
    if (layout_.has_states()) run_state(plan, at, scheduler, ran);
  }
  // Nobody writes what another reads in the same step.
  for (const auto& [kept, content] : ran.kept) {
    if (memory_[kept] != content) broken("a page is read by one sequence of a step and written by another");
  }
  ran_.push_back(std::move(ran));
}

void Device::end() {
  for (const auto& [kept, content] : ran_.front().kept) {
    if (memory_[kept] != content) broken("a page was given away while a step under way used it");
  }
  ran_.pop_front();
}

void Device::lose() {
  for (const Ran& ran : ran_) {
    for (const Cell written : ran.written) memory_[written] = garbage;
    for (const Entry& entry : ran.updated) table(entry.group, entry.row, entry.index) = unknown;
    if (fault_ == Fault::spoil_cached && !ran.kept.empty()) memory_[ran.kept.front().first] = garbage;
  }
  ran_.clear();
  has_failed_ = true;
}

void Device::begin(const Transfer& transfer) {
  for (const auto& [device, host] : transfer.pairs) {
    for (std::int32_t row = 0; row < layout_.page_size; ++row) {
      if (transfer.kind == Transfer::Kind::store) host_[host_cell(transfer.ranks, host, row)] = garbage;
      if (transfer.kind == Transfer::Kind::load)
        memory_[cell(transfer.ranks, full_group, number(device), row)] = garbage;
    }
  }
  moves_.push_back({transfer.id, transfer.kind, transfer.ranks, transfer.pairs});
}

void Device::end(std::size_t transfer, bool ok) {
  const Move move = std::move(moves_[transfer]);
  moves_.erase(moves_.begin() + static_cast<std::ptrdiff_t>(transfer));
  for (const auto& [device, host] : move.pairs) {
    for (std::int32_t row = 0; row < layout_.page_size; ++row) {
      Content& here = memory_[cell(move.ranks, full_group, number(device), row)];
      Content& there = host_[host_cell(move.ranks, host, row)];
      if (move.kind == Transfer::Kind::store) there = ok && fault_ != Fault::lose_store ? here : garbage;
      if (move.kind == Transfer::Kind::load) here = ok && fault_ != Fault::lose_load ? there : garbage;
    }
  }
}

void Device::settle(const Scheduler& scheduler) {
  for (std::int32_t at = 0; at < num_rank_groups_; ++at) {
    const RankGroupId ranks{at};
    const PrefixCache& cache = Audit::cache(scheduler, ranks);
    for (std::int32_t group = 0; group < layout_.num_groups(); ++group) {
      const PagePool& pool = cache.pool(CacheGroupId{group});
      for (std::int32_t page = 0; page < pool.num_pages(); ++page) {
        if (!Audit::is_free(pool, PageId{page})) continue;
        for (std::int32_t row = 0; row < rows_of(CacheGroupId{group}); ++row) {
          memory_[cell(ranks, CacheGroupId{group}, page, row)] = garbage;
        }
      }
    }
    const auto check_page = [&](CacheGroupId group, PageId page, std::span<const Content> contents) {
      for (std::int32_t row = 0; row < rows_of(group); ++row) {
        const Content content = layout_.is_paged(group) ? contents[static_cast<std::size_t>(row)] : contents.back();
        if (memory_[cell(ranks, group, number(page), row)] != content) {
          broken("page ", number(page), " of cache group ", number(group), " does not hold what the prefix cache says");
        }
      }
    };
    const auto check_copy = [&](HostPageId page, std::span<const Content> contents) {
      for (std::int32_t row = 0; row < layout_.page_size; ++row) {
        if (host_[host_cell(ranks, page, row)] != contents[static_cast<std::size_t>(row)]) {
          broken("host page ", number(page), " does not hold what the prefix cache says");
        }
      }
    };
    Audit::each_block(cache, check_page, check_copy);
  }
  for (std::int32_t slot = 0; slot < max_sequences_; ++slot) {
    if (!Audit::is_free(scheduler, SlotId{slot})) continue;
    for (std::int32_t group = 0; group < layout_.num_groups(); ++group) {
      std::fill_n(&table(CacheGroupId{group}, slot, 0), columns_, unknown);
    }
  }
}

}  // namespace tsrun::model
