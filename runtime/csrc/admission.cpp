// Who of those that wait starts to run, and where. Planned first and then done, all of it or nothing.
#include <algorithm>
#include <cassert>
#include <memory>
#include <utility>

#include "scheduler.hpp"

namespace tsrun {

namespace {

constexpr std::int32_t max_candidates = 4;    // that are looked up in the prefix cache
constexpr std::size_t max_looked_at = 16;     // of a user's line, with those that wait for what is being computed
constexpr std::int32_t max_times_passed = 8;  // then a request goes first, whatever others have cached

}  // namespace

// Admits a request of the front's user, and plans its first chunk.
Scheduler::Admission Scheduler::admit_next(Entry& front) {
  if (is_still_blocked(front)) return Admission::none;
  blocked_ = {};
  if (slots_.num_free() == 0) {
    if (yields_seat(front)) return Admission::look_again;
    blocked_ = {&front, num_left_, true, {}, 0};
    return Admission::none;
  }
  if (!holds_floor()) return Admission::none;
  RankGroupId ranks{};
  bool lacks_pages = false;
  Entry* chosen = choose(front, ranks, lacks_pages);
  if (chosen == nullptr && !lacks_pages) return Admission::pass;
  if (chosen == nullptr) return yields_seat(front) ? Admission::look_again : Admission::none;
  if (chosen != &front && !front.awaited) ++front.times_passed;
  seat(*chosen, ranks);
  return Admission::look_again;
}

// Nobody has left since, and the pages that were too few then have not become more: nothing is looked up.
bool Scheduler::is_still_blocked(const Entry& front) const {
  if (blocked_.entry != &front || blocked_.num_left != num_left_) return false;
  if (blocked_.lacks_slot) return slots_.num_free() == 0;  // who leaves a step under way keeps its slot until then
  std::int32_t most = 0;
  for (const PrefixCache& cache : caches_) most = std::max(most, cache.pool(blocked_.group).num_available());
  return most < blocked_.available;
}

// Before the decodes are planned, since who is in a step can not give its seat up: a seat for every waiting user to
// whom another would yield one, and pages for the first of them.
void Scheduler::yield_seats() {
  if (users_.size() == 1) return;
  const Entry* front = queue_.front();
  if (front == nullptr || is_still_blocked(*front)) return;
  const auto lacks_slots = [this] {
    std::int32_t most = 0;
    for (const Entry* entry : running_) most = std::max(most, entry->user->num_running);
    return queue_.has_users_below(most - 1, slots_.num_free());
  };
  const auto lacks_pages = [this, front] {
    const std::int64_t wanted = pages_for(front->request().length(), limits_.page_size());
    const auto has_them = [&](const PrefixCache& own) { return own.pool(full_group).num_available() >= wanted; };
    return std::ranges::none_of(caches_, has_them);
  };
  while ((lacks_pages() || lacks_slots()) && yields_seat(*front)) {
  }
}

// A user with two running requests more than the front's gives its youngest up, not its only one: the shares become
// equal and stay so. What that one has computed stays in the cache as long as there is room.
bool Scheduler::yields_seat(const Entry& front) {
  if (users_.size() == 1) return false;
  Entry* victim = nullptr;
  for (Entry* entry : running_) {
    if (entry->must_land) return false;
    const std::int32_t share = entry->user->num_running;
    const bool has_more = share > front.user->num_running + 1;
    if (!has_more || entry->priority < front.priority || entry->is<Loading>()) continue;
    // Who gives up a seat must come after the front in the queue: else it would take the seat back, in this very plan.
    const std::int64_t ahead = entry->user->served - front.user->served;
    const bool wins_tie = front.user->num_running > 0 && entry->number < front.number;
    if (entry->priority == front.priority && (ahead < 0 || (ahead == 0 && wins_tie))) continue;
    if (victim == nullptr || share >= victim->user->num_running) victim = entry;
  }
  if (victim == nullptr) return false;
  if (!victim->seat().flights.empty()) {
    victim->must_land = true;
    return false;
  }
  preempt(*victim);
  return true;
}

// Whether every decoding request would still have its tokens per second with one more beside it.
bool Scheduler::holds_floor() const {
  if (policy_.floor <= 0 || size_.num_sequences == 0 || !step_time_.is_known()) return true;
  StepSize more = size_;
  more.num_rows = more.num_sequences = size_.num_sequences + 1;
  more.num_read += size_.num_read / size_.num_sequences;
  return step_time_.predict(more) <= 1 / policy_.floor;
}

// Of the front and those behind it of the same user the one with the longest cached prefix that fits, where it fits
// best.
Entry* Scheduler::choose(Entry& front, RankGroupId& ranks, bool& lacks_pages) {
  const bool looks_behind = policy_.prefix_cache && front.is<Waiting>() && front.times_passed < max_times_passed;
  queue_.candidates(front, looks_behind ? max_looked_at : 1, candidates_);
  Entry* best = nullptr;
  std::int32_t best_pages = -1;
  std::int32_t best_available = 0;
  std::int32_t num_looked_up = 0;
  for (Entry* entry : candidates_) {
    if (still_waits(*entry)) continue;
    if (num_looked_up++ == max_candidates) break;
    const bool looks_up = policy_.prefix_cache && !entry->options.scores_prompt;
    const std::int32_t num_pages = looks_up ? (entry->request().length() - 1) / limits_.page_size() : 0;
    for (std::int32_t at = 0; at < limits_.num_rank_groups; ++at) {
      const RankGroupId here{at};
      if (budgets_[place(here)] == 0) continue;
      Match& match = tried_[place(here)];
      cache(here).match(entry->request().hashes(num_pages, limits_.page_size()), entry->request().tokens(),
                        entry->options.salt, match);
      if (is_computed_soon(*entry, here, match)) continue;
      Blocked blocked;
      if (!fits(*entry, here, match, blocked)) {
        lacks_pages = true;
        // With several groups of ranks one of them may be free for another reason: it is tried again.
        if (entry == &front && limits_.num_rank_groups == 1) blocked_ = blocked;
        continue;
      }
      const std::int32_t pages = match.device + match.host;
      const std::int32_t available = cache(here).pool(full_group).num_available();
      const bool is_better = pages != best_pages ? pages > best_pages : entry == best && available > best_available;
      if (!is_better) continue;
      best = entry;
      best_pages = pages;
      best_available = available;
      ranks = here;
      std::swap(matches_[place(here)], match);
    }
  }
  return best;
}

// A running request is about to compute this page of the prompt: who waits for it shares it.
bool Scheduler::computes(const Entry& other, std::int32_t page) const {
  if (!other.is<Prefilling>() || other.must_land) return false;
  const std::int32_t size = limits_.page_size();
  return page < other.request().length() / size && other.seat().num_cached / size <= page;
}

// Whether the page after the match is about to be computed. Who it is and which page is kept, so that a long prompt is
// not looked up again in each step of the other.
bool Scheduler::is_computed_soon(Entry& entry, RankGroupId ranks, const Match& match) {
  if (!policy_.prefix_cache || entry.options.scores_prompt) return false;
  const std::int32_t size = limits_.page_size();
  const std::int32_t next = match.device + match.host;
  if (next >= (entry.request().length() - 1) / size) return false;
  for (Entry* other : running_) {
    if (&other->seat().pages.cache() != &cache(ranks) || other->options.salt != entry.options.salt) continue;
    if (!computes(*other, next) || other->request().hash(next, size) != entry.request().hash(next, size)) continue;
    if (limits_.num_rank_groups == 1) entry.awaited = Awaited{other->id, next};
    return true;
  }
  return false;
}

bool Scheduler::still_waits(Entry& entry) const {
  if (!entry.awaited) return false;
  const Entry* other = find(entry.awaited->request);
  if (other != nullptr && computes(*other, entry.awaited->page)) return true;
  entry.awaited.reset();
  return false;
}

// A request starts only when all its tokens would fit beside those that are promised to others: one that starts earlier
// is soon preempted, and computed over and over. This also keeps the preempted out of the plan that preempted them.
bool Scheduler::fits(const Entry& entry, RankGroupId ranks, const Match& match, Blocked& blocked) const {
  const PrefixCache& own = caches_[place(ranks)];
  const std::int32_t length = entry.request().length();
  const std::int32_t chunk = limits_.max_step_tokens / limits_.num_rank_groups;
  for (std::int32_t at = 0; at < limits_.caches.num_groups(); ++at) {
    const CacheGroupId group{at};
    const PagePool& pool = own.pool(group);
    std::int64_t promised = 0;
    for (const Entry* other : running_) {
      if (other->is<Decoding>() || &other->seat().pages.cache() != &own) continue;
      const std::int64_t most = limits_.caches.most_pages(group, other->request().length(), chunk);
      promised += std::max<std::int64_t>(0, most - other->seat().pages.num_owned(group));
    }
    // Cached pages are not taken from the pool, but for those that lie idle in it.
    std::int64_t shared = 0;
    std::int64_t idle = 0;
    if (group == full_group) {
      shared = match.device;
      idle = match.num_idle;
    } else if (match.device > 0) {
      const bool is_paged = limits_.caches.is_paged(group);
      const std::int32_t position = match.device * limits_.page_size();
      const std::int32_t first = is_paged ? limits_.caches.first_page(group, position) : match.device - 1;
      for (std::int32_t index = first; index < match.device; ++index) {
        idle += pool.num_readers(own.page_of(group, match.blocks[static_cast<std::size_t>(index)])) == 0;
      }
      shared =
          is_paged ? match.device - first : 0;  // of a state the copy is read once, and then one of its own written
    }
    const std::int64_t most = std::min<std::int64_t>(limits_.caches.most_pages(group, length, chunk), pool.num_pages());
    const std::int64_t needed = std::max<std::int64_t>(0, most - shared) + idle + promised;
    if (pool.num_available() < needed) {
      blocked = {&entry, num_left_, false, group,
                 static_cast<std::int32_t>(std::min<std::int64_t>(needed, pool.num_pages()))};
      return false;
    }
  }
  return true;
}

void Scheduler::seat(Entry& entry, RankGroupId ranks) {
  const Match& match = matches_[place(ranks)];
  PrefixCache& own = cache(ranks);
  SlotLease slot = *slots_.take();
  const SlotId row = slot.slot();
  auto taken =
      std::make_unique<Seat>(Seat{.slot = std::move(slot), .pages = PageTable(&own, row, policy_.prefix_cache)});
  taken->pages.reserve(static_cast<std::int32_t>(pages_for(entry.request().max_length(), limits_.page_size())));
  taken->pages.begin(match, updates_);
  taken->num_cached = match.device * limits_.page_size();
  taken->pages.take_state(updates_);
  if (entry.cached_tokens < 0) entry.cached_tokens = (match.device + match.host) * limits_.page_size();
  queue_.erase(entry);
  fewest_running_ = std::min(fewest_running_, ++entry.user->num_running);
  const auto start = [&](auto&& begin) {
    if (entry.is<Waiting>()) {
      entry.state = begin(std::get<Waiting>(std::move(entry.state)));
    } else {
      entry.state = begin(std::get<Preempted>(std::move(entry.state)));
    }
  };
  if (match.host > 0) {
    Transfer transfer{TransferId{num_transfers_++}, Transfer::Kind::load, ranks, {}, {}, {}, {}, entry.id};
    transfer.blocks.assign(match.blocks.begin() + match.device, match.blocks.end());
    for (const BlockId block : transfer.blocks) {
      const std::int32_t index = taken->pages.num_pages();
      [[maybe_unused]] const bool has_page = taken->pages.extend(updates_);
      assert(has_page);
      transfer.pairs.push_back({taken->pages.page(full_group, index), own.host_page(block)});
    }
    own.pin_host(transfer.blocks);
    taken->flights.begin_transfer();
    transfers_.push_back({std::move(transfer), true});
    start([&](auto&& queued) { return load(std::move(queued), std::move(taken)); });
  } else {
    start([&](auto&& queued) { return admit(std::move(queued), std::move(taken)); });
  }
  const auto precedes = [](const Entry* a, const Entry* b) { return a->precedes(*b); };
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &entry, precedes), &entry);
  if (entry.is<Prefilling>()) plan_fill(entry);
}

}  // namespace tsrun
