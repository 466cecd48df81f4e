// What the next step runs: every decode, then prompts, until the step's rows or the pages are used up.
#include <algorithm>
#include <cassert>
#include <utility>

#include "scheduler.hpp"
#include "text.hpp"

namespace tsrun {

namespace {

constexpr std::size_t max_passed = 8;  // lines that are passed over in a step, since what they need is being computed

}  // namespace

const StepPlan* Scheduler::plan(Seconds now) {
  check_finite(now);
  if (num_outstanding() == limits_.depth) {
    out_of_order("plan while step ", number(clock_.retired) + 1, " is not committed");
  }
  expire(now);
  queue_.promote(now);
  planned_ = StepId{number(clock_.youngest) + 1};
  Step& step = step_of(planned_);
  step.chunks.clear();
  size_ = {};
  preempt_landed();
  yield_seats();
  std::ranges::fill(budgets_, limits_.max_step_tokens / limits_.num_rank_groups);
  order_.assign(running_.begin(), running_.end());  // planning may preempt
  count_due();
  for (Entry* entry : order_) plan_decode(*entry);
  plan_fills();
  if (step.chunks.empty()) return nullptr;
  lay_out();
  step.size = size_;
  step.planned_at = now;
  clock_.youngest = planned_;
  return &step.plan;
}

// Of its known tokens some will not be in the pages when the steps under way are done.
bool Scheduler::is_filling(const Entry& entry) const {
  return entry.is<Prefilling>() && entry.planned_cached() < entry.request().length();
}

bool Scheduler::is_decoding(const Entry& entry) const {
  return (entry.is<Decoding>() || entry.is<Prefilling>()) && !entry.must_land && !is_filling(entry);
}

void Scheduler::count_due() {
  std::ranges::fill(due_rows_, 0);
  has_prompts_ = queue_.size() > 0;
  for (const Entry* entry : running_) {
    if (is_decoding(*entry)) ++due_rows_[place(cache_index(entry->seat().pages.cache()))];
    has_prompts_ = has_prompts_ || entry->is<Prefilling>();
  }
}

void Scheduler::plan_decode(Entry& entry) {
  if (!is_decoding(entry)) return;
  const std::int32_t others_due = --due_rows_[place(cache_index(entry.seat().pages.cache()))];
  const Flights& flights = entry.seat().flights;
  const bool follows = flights.num_steps() > 0;
  if (follows && (entry.options.needs_token || !entry.drafts.empty())) return;
  const std::int32_t length = entry.planned_length();
  const std::int32_t room = entry.request().max_length() - length;
  const std::int32_t left = budget(entry.seat().pages.cache());
  if (room < 1 || left < 1) return;
  const auto host_drafts = static_cast<std::int32_t>(entry.drafts.size());
  // Every decode has its row before any has drafts, and drafts leave a quarter of the step to prompts.
  const std::int32_t kept = has_prompts_ ? limits_.max_step_tokens / limits_.num_rank_groups / 4 : 0;
  const std::int32_t spare = std::max(0, left - 1 - others_due - kept);
  const std::int32_t drafts = std::min(spare, std::max(entry.options.device_drafts, host_drafts));
  const std::int32_t begin = entry.planned_cached();
  const std::int32_t end = reserve(entry, begin, begin + std::min(1 + drafts, room));
  if (end == begin) return;
  add_chunk(entry, begin, end - begin, end - begin, follows ? flights.youngest().sequence : -1);
}

// Prompts under way and those who wait, in one order: who was served least goes first, so that a long prompt of one
// user does not keep another's short one waiting.
void Scheduler::plan_fills() {
  fills_.clear();
  passed_.clear();
  for (Entry* entry : running_) {
    if (!entry->must_land && !entry->is<Loading>() && is_filling(*entry)) fills_.push_back(entry);
  }
  const auto goes_first = [](const Entry* a, const Entry* b) {
    if (a->priority != b->priority) return a->priority < b->priority;
    if (a->user->served != b->user->served) return a->user->served < b->user->served;
    if (a->user != b->user && (a->user->num_running == 0) != (b->user->num_running == 0))
      return a->user->num_running == 0;
    return a->number < b->number;
  };
  std::ranges::sort(fills_, goes_first);
  fill_rows_ = limits_.max_step_tokens;
  yielding_rows_ = std::max(1, limits_.max_step_tokens / 2);
  scored_rows_ = policy_.scored_rows;
  fewest_running_ = fewest_ending_ = limits_.max_sequences;
  if (users_.size() > 1) {
    for (const Entry* entry : running_) fewest_running_ = std::min(fewest_running_, entry->user->num_running);
  }
  if (policy_.floor > 0 && size_.num_sequences > 0 && step_time_.is_known()) {
    // One page at least, so that prompts end however slow the device is.
    const std::int32_t most = step_time_.rows_within(size_, 1 / policy_.floor, limits_.max_step_tokens);
    fill_rows_ = std::max(limits_.page_size(), most - size_.num_rows);
  }
  const auto has_rows = [&] { return fill_rows_ > 0 && *std::ranges::max_element(budgets_) > 0; };
  bool admits = true;
  for (auto fill = fills_.begin(); has_rows();) {
    Entry* front = admits && passed_.size() < max_passed ? queue_.front(passed_) : nullptr;
    if (front != nullptr && (fill == fills_.end() || goes_first(front, *fill))) {
      const Admission admission = admit_next(*front);
      if (admission == Admission::pass) passed_.push_back(front);
      admits = admission != Admission::none;
    } else if (fill != fills_.end()) {
      Entry& next = **fill++;
      // Not preempted since, nor after that admitted again with its rows of this step.
      if (next.is<Prefilling>() && !next.must_land && !next.seat().flights.is_in(planned_)) plan_fill(next);
    } else {
      return;
    }
  }
}

void Scheduler::plan_fill(Entry& entry) {
  const std::int32_t length = entry.request().length();
  const std::int32_t begin = entry.planned_cached();
  std::int32_t wanted = begin + std::min({budget(entry.seat().pages.cache()), fill_rows_, length - begin});
  if (const std::int32_t every = limits_.caches.snapshot_tokens(); every > 0) {
    wanted = std::min(wanted, (begin / every + 1) * every);  // a state can be copied only between chunks
  }
  if (entry.options.scores_prompt) wanted = std::min(wanted, begin + scored_rows_);
  // Rows that make no token in this step keep others waiting. A user with more requests than another computes at most
  // half a step of them, so that who comes meanwhile waits for a short step; and none where another's first token is
  // due.
  const std::int32_t share = entry.user->num_running - 1;
  const bool yields = wanted < length && share > fewest_running_;
  if (yields) wanted = std::min(wanted, begin + (share > fewest_ending_ ? 0 : yielding_rows_));
  if (wanted == begin) return;
  const std::int32_t end = reserve(entry, begin, wanted);
  if (end == begin) return;
  if (end == length) fewest_ending_ = std::min(fewest_ending_, entry.user->num_running);
  if (yields) yielding_rows_ -= end - begin;
  fill_rows_ -= end - begin;
  if (entry.options.scores_prompt) scored_rows_ -= end - begin;
  add_chunk(entry, begin, end - begin, end == length ? 1 : 0, -1);
}

void Scheduler::add_chunk(Entry& entry, std::int32_t begin, std::int32_t rows, std::int32_t new_tokens,
                          std::int32_t follows) {
  step_of(planned_).chunks.push_back({&entry, begin, rows, new_tokens, follows});
  entry.seat().flights.take_off({planned_, -1, begin, rows, new_tokens});
  entry.user->served += rows;
  budget(entry.seat().pages.cache()) -= rows;
  ++size_.num_sequences;
  size_.num_rows += rows;
  size_.num_read += begin + rows;
}

// Takes pages for [begin, end), or for a shorter chunk when the pools run dry; the end of what has pages. For a first
// token others give way, the youngest first.
std::int32_t Scheduler::reserve(Entry& entry, std::int32_t begin, std::int32_t end) {
  PageTable& pages = entry.seat().pages;
  while (pages.capacity() < end) {
    if (pages.extend(updates_)) continue;
    if (pages.capacity() > begin) return std::min(end, pages.capacity());
    if (!make_room(entry)) return begin;
  }
  return end;
}

// Whether the entry should look again: the youngest of its group of ranks has given its pages back. One that is in a
// step is first left out of the next, and the oldest alone always fits (see refusal), so that nobody is preempted for
// ever.
bool Scheduler::make_room(Entry& entry) {
  PrefixCache& own = entry.seat().pages.cache();
  if (comes_back(own)) return false;
  Entry* oldest = nullptr;
  Entry* victim = nullptr;
  bool is_loading = false;
  for (Entry* other : running_) {
    if (&other->seat().pages.cache() != &own) continue;
    if (other->must_land) return false;  // already on its way out
    if (oldest == nullptr) oldest = other;
    if (other->is<Loading>()) {
      is_loading = true;
    } else {
      victim = other;
    }
  }
  if (victim == &entry && (is_loading || oldest == &entry)) return false;
  if (!victim->seat().flights.empty()) {
    victim->must_land = victim != &entry;
    return false;
  }
  preempt(*victim);
  return victim != &entry;
}

// Whether what is lacking is with a step or transfer under way, or with a request that ends with one.
bool Scheduler::comes_back(const PrefixCache& own) const {
  bool is_held = true;
  for (std::int32_t group = 0; group < limits_.caches.num_groups(); ++group) {
    const PagePool& pool = own.pool(CacheGroupId{group});
    const bool is_lacking = limits_.caches.is_paged(CacheGroupId{group}) && pool.num_available() == 0;
    if (is_lacking && pool.num_held() == 0) is_held = false;
  }
  const auto leaves = [&own](const Entry& entry) {
    return entry.is<Finishing>() && &entry.seat().pages.cache() == &own;
  };
  for (std::int64_t step = number(clock_.retired) + 1; step <= number(clock_.youngest); ++step) {
    for (const Chunk& chunk : step_of(StepId{step}).chunks) is_held = is_held || leaves(*chunk.entry);
  }
  for (const auto& [transfer, is_new] : transfers_) {
    const bool is_store = transfer.kind == Transfer::Kind::store && &caches_[place(transfer.ranks)] == &own;
    is_held = is_held || is_store || (transfer.kind == Transfer::Kind::load && leaves(*find(transfer.request)));
  }
  return is_held;
}

void Scheduler::preempt_landed() {
  order_.assign(running_.begin(), running_.end());
  for (Entry* entry : order_) {
    if (entry->must_land && entry->seat().flights.empty()) preempt(*entry);
  }
}

void Scheduler::preempt(Entry& entry) {
  store(entry);
  leave_running(entry);
  const Landed landed = *entry.seat().flights.landed();
  if (entry.is<Prefilling>()) {
    entry.state = tsrun::preempt(std::get<Prefilling>(std::move(entry.state)), landed);
  } else {
    entry.state = tsrun::preempt(std::get<Decoding>(std::move(entry.state)), landed);
  }
  entry.must_land = false;
  entry.drafts.clear();
  queue_.push(entry, committed_at_);
  ++preemptions_;
}

// The rows of each group's block when the fullest needs `rows`: padded as steps of that size are. Of the size without
// padding: a step of one token would else be padded for the plan of four, and never run its own.
std::int32_t Scheduler::block_for(std::int32_t rows) const {
  for (auto padding = paddings_.rbegin();; ++padding) {  // ends at the first: it is for 1 token and on
    if (rows * limits_.num_rank_groups < padding->tokens) continue;
    const std::int32_t unit = padding->multiple / limits_.num_rank_groups;
    return (rows + unit - 1) / unit * unit;
  }
}

// Block after block, one a group of ranks, as long as the fullest needs: a group's ranks take its block of the rows.
void Scheduler::lay_out() {
  Step& step = step_of(planned_);
  const std::int32_t most = limits_.max_step_tokens / limits_.num_rank_groups;
  const std::int32_t block = block_for(most - *std::ranges::min_element(budgets_));
  step.plan.clear(planned_);
  step.plan.size_for(block * limits_.num_rank_groups, limits_.caches);
  if (limits_.num_rank_groups > 1) {
    const auto ranks = [this](const Chunk& chunk) { return cache_index(chunk.entry->seat().pages.cache()); };
    std::ranges::stable_sort(step.chunks, {}, ranks);
  }
  const PrefixCache* last = nullptr;
  std::int32_t row = 0;
  std::int32_t sequence = 0;
  for (const Chunk& chunk : step.chunks) {
    const PrefixCache* own = &chunk.entry->seat().pages.cache();
    if (own != last) row = number(cache_index(*own)) * block;
    last = own;
    if (limits_.caches.has_states()) copy_states(chunk, step.plan);
    row = step.plan.add(chunk, row);
    chunk.entry->seat().flights.sit_at(sequence++);
    chunk.entry->drafts.clear();
  }
  step.plan.table_updates.swap(updates_.entries());
  updates_.entries().clear();
}

// A request that starts from a copied state has it copied to its own first. One whose chunk begins where a copy is due
// has its own copied: the steps before have left it there.
void Scheduler::copy_states(const Chunk& chunk, StepPlan& plan) {
  PageTable& pages = chunk.entry->seat().pages;
  const std::int32_t group = number(limits_.caches.state_group());
  if (const std::optional<CachedPage> source = pages.take_restore()) {
    plan.copies.insert(plan.copies.end(), {group, number(source->page()), number(pages.state())});
  } else if (policy_.prefix_cache && chunk.begin > 0 && chunk.begin % limits_.caches.snapshot_tokens() == 0) {
    if (const std::optional<PageId> target = pages.snapshot(planned_, chunk.begin)) {
      plan.copies.insert(plan.copies.end(), {group, number(pages.state()), number(*target)});
    }
  }
}

}  // namespace tsrun
