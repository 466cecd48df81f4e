// What callers say: requests that come and go, results of steps and transfers. What runs next is in planning.cpp and
// admission.cpp.
#include "scheduler.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <limits>
#include <utility>

#include "text.hpp"

namespace tsrun {

namespace {

bool is_negative(Token token) { return token < 0; }

}  // namespace

Scheduler::Scheduler(const Limits& limits, const Policy& policy, std::vector<Padding> paddings)
    : limits_(checked(limits)),
      policy_(checked(policy)),
      paddings_(checked(std::move(paddings), limits)),
      slots_(std::min(limits.max_sequences, limits.max_step_tokens)),  // each has a row in every step
      queue_(policy.aging),
      budgets_(static_cast<std::size_t>(limits.num_rank_groups)),
      matches_(static_cast<std::size_t>(limits.num_rank_groups)),
      tried_(static_cast<std::size_t>(limits.num_rank_groups)) {
  for (std::int32_t ranks = 0; ranks < limits.num_rank_groups; ++ranks) {
    caches_.emplace_back(limits.caches, RankGroupId{ranks}, limits.num_host_pages, &clock_);
    if (policy.keep_events) caches_.back().keep_events();
  }
  due_rows_.resize(static_cast<std::size_t>(limits.num_rank_groups));
  const std::int32_t most = std::min(limits.max_sequences, limits.max_step_tokens);
  for (std::int32_t step = 0; step < max_depth; ++step) {
    steps_.push_back({StepPlan(limits.max_step_tokens, most, limits.caches.num_groups()), {}, {}, 0});
    steps_.back().chunks.reserve(static_cast<std::size_t>(most));
  }
  for (auto* list : {&running_, &order_, &fills_}) list->reserve(static_cast<std::size_t>(limits.max_sequences));
}

Scheduler::~Scheduler() = default;

Entry* Scheduler::find(RequestId id) const {
  const auto found = live_.find(id);
  return found == live_.end() ? nullptr : found->second.get();
}

// Who comes anew counts as served as much as the one who was served least of those that are here: absence earns no
// credit.
User& Scheduler::user_of(UserId id) {
  if (users_.size() > 2 * live_.size() + 1024) {  // those who left long ago
    std::erase_if(users_, [](const auto& known) { return known.second->num_open == 0; });
  }
  std::unique_ptr<User>& user = users_[id];
  if (!user) user = std::make_unique<User>(User{id});
  if (user->num_open > 0) return *user;
  const Entry* front = queue_.front();
  std::int64_t least = front == nullptr ? std::numeric_limits<std::int64_t>::max() : front->user->served;
  for (const Entry* entry : running_) least = std::min(least, entry->user->served);
  if (front != nullptr || !running_.empty()) least_served_ = std::max(least_served_, least);
  user->served = std::max(user->served, least_served_);
  return *user;
}

RankGroupId Scheduler::cache_index(const PrefixCache& cache) const {
  std::int32_t ranks = 0;
  while (&caches_[static_cast<std::size_t>(ranks)] != &cache) ++ranks;
  return RankGroupId{ranks};
}

std::string Scheduler::refusal(std::int64_t prompt_tokens, std::int64_t max_new_tokens) const {
  if (is_draining_) return "the scheduler is draining";
  return tsrun::refusal(limits_, prompt_tokens, max_new_tokens);
}

void Scheduler::submit(RequestId id, std::span<const Token> prompt, std::int32_t max_new_tokens,
                       const RequestOptions& options, Seconds now) {
  if (live_.contains(id)) reject(id, "already submitted and not yet ended");
  const std::string why = refusal(static_cast<std::int64_t>(prompt.size()), max_new_tokens);
  if (!why.empty()) reject(id, why);
  check_finite(now);
  if (std::isnan(options.deadline)) reject(id, "the deadline is not a number");
  if (const auto token = std::ranges::find_if(prompt, is_negative); token != prompt.end()) {
    reject(id, "a token is at least 0, got ", *token);
  }
  if (options.priority < 0 || options.priority >= num_priorities) {
    reject(id, "priority must be from 0 to ", num_priorities - 1, ", got ", options.priority);
  }
  if (options.device_drafts < 0 || options.device_drafts >= limits_.max_step_tokens / limits_.num_rank_groups) {
    reject(id, "device_drafts of ", options.device_drafts, " and a token do not fit in a step");
  }
  if (options.device_drafts > 0 && limits_.caches.has_states()) {
    reject(id, "device_drafts need a state that can be taken back, and a recurrent one can not");
  }
  const std::uint64_t root = hash_root(policy_.name_space, options.salt);
  auto request = std::make_unique<Request>(id, prompt, max_new_tokens, options.salt, root, &buffers_);
  if (policy_.prefix_cache) request->hashes(request->length() / limits_.page_size(), limits_.page_size());
  User& user = user_of(options.user);
  auto entry = std::make_unique<Entry>(id, num_submitted_++, options, &user, Waiting{std::move(request)});
  ++user.num_open;
  queue_.push(*entry, now);
  if (options.deadline != never) deadlines_.insert({options.deadline, entry.get()});
  live_.emplace(id, std::move(entry));
}

void Scheduler::draft(RequestId id, std::span<const Token> tokens) {
  Entry* entry = find(id);
  if (entry == nullptr) return;
  if (limits_.caches.has_states()) out_of_order("draft where a recurrent state can not be taken back");
  if (std::ranges::any_of(tokens, is_negative)) out_of_order("draft for request ", number(id), " of a token below 0");
  entry->drafts.assign(tokens.begin(), tokens.end());
}

void Scheduler::abort(RequestId id) {
  if (Entry* entry = find(id)) end(*entry, Event::abort);
}

void Scheduler::finish(RequestId id) {
  Entry* entry = find(id);
  if (entry == nullptr || entry->is<Finishing>()) return;
  const bool has_made = entry->request().length() > entry->request().prompt_length();
  if (!has_made) out_of_order("finish of request ", number(id), ", which has made no token; abort ends it");
  end(*entry, Event::finish);
}

// A request that is in a step or a transfer leaves, and is gone when that is over. event: finish or abort.
void Scheduler::end(Entry& entry, Event event) {
  const auto leave_or = [&](auto& state, auto&& at_once) {
    store(entry);
    leave_running(entry);
    if (const std::optional<Landed> landed = state.seat->flights.landed()) {
      at_once(*landed);
      erase(entry);
    } else {
      entry.state = leave(std::move(state));
    }
  };
  std::visit(
      OnState{
          [&](Waiting& state) {
            queue_.erase(entry);
            tsrun::abort(std::move(state));
            erase(entry);
          },
          [&](Preempted& state) {
            queue_.erase(entry);
            event == Event::finish ? tsrun::finish(std::move(state)) : tsrun::abort(std::move(state));
            erase(entry);
          },
          [&](Loading& state) {
            leave_running(entry);
            entry.state = leave(std::move(state));
          },
          [&](Prefilling& state) { leave_or(state, [&](Landed landed) { tsrun::abort(std::move(state), landed); }); },
          [&](Decoding& state) {
            leave_or(state, [&](Landed landed) {
              event == Event::finish ? tsrun::finish(std::move(state), landed) : tsrun::abort(std::move(state), landed);
            });
          },
          [](Finishing&) {}},
      entry.state);
}

void Scheduler::leave_running(Entry& entry) {
  const auto precedes = [](const Entry* a, const Entry* b) { return a->precedes(*b); };
  const auto found = std::lower_bound(running_.begin(), running_.end(), &entry, precedes);
  assert(found != running_.end() && *found == &entry);
  running_.erase(found);
  --entry.user->num_running;
  ++num_left_;
  // What it had may be enough: who was to give way is looked at again.
  for (Entry* other : running_) other->must_land = false;
}

void Scheduler::erase(Entry& entry) {
  if (entry.options.deadline != never) deadlines_.erase({entry.options.deadline, &entry});
  if (blocked_.entry == &entry) blocked_ = {};
  --entry.user->num_open;
  const RequestId id = entry.id;  // not the entry's own, which goes
  live_.erase(id);
}

// What the sequence has in the cache is written to the host, now that it may be evicted.
void Scheduler::store(Entry& entry) {
  const PageTable& pages = entry.seat().pages;
  PrefixCache& cache = pages.cache();
  if (!cache.has_host() || pages.chain() == root_block || pages.chain() == no_block) return;
  if (std::optional<Transfer> transfer = cache.begin_store(pages.chain(), TransferId{num_transfers_})) {
    ++num_transfers_;
    transfers_.push_back({std::move(*transfer), true});
  }
}

void Scheduler::expire(Seconds now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    Entry& entry = *deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    entry.options.deadline = never;
    if (entry.is<Finishing>()) continue;
    ended_.emplace_back(entry.id, "deadline");
    end(entry, Event::abort);
  }
}

const StepPlan& Scheduler::outstanding(StepId step) const {
  if (num_outstanding() == 0) out_of_order("step ", number(step), " is not under way: no step is");
  if (step <= clock_.retired || step > clock_.youngest) {
    const std::int64_t oldest = number(clock_.retired) + 1;
    out_of_order("step ", number(step), " is not under way: step ", oldest, " is",
                 num_outstanding() > 1 ? text(", and step ", oldest + 1) : "");
  }
  return step_of(step).plan;
}

void Scheduler::commit(StepId step, std::span<const Token> tokens, std::optional<std::span<const std::int32_t>> counts,
                       Seconds now) {
  outstanding(step);
  if (number(step) != number(clock_.retired) + 1) {
    out_of_order("commit of step ", number(step), " before step ", number(clock_.retired) + 1);
  }
  check_finite(now);
  if (std::ranges::any_of(tokens, is_negative)) out_of_order("commit of step ", number(step), " with a token below 0");
  Step& own = step_of(step);
  const std::size_t num_sequences = own.chunks.size();
  if (!counts && tokens.size() != num_sequences) {
    out_of_order("commit of step ", number(step), " needs ", num_sequences, " tokens, one a sequence, got ",
                 tokens.size());
  }
  if (counts) {
    if (counts->size() != num_sequences) {
      out_of_order("commit of step ", number(step), " needs ", num_sequences, " counts, got ", counts->size());
    }
    std::int64_t total = 0;
    for (std::size_t at = 0; at < num_sequences; ++at) {
      const std::int32_t count = (*counts)[at];
      const std::int32_t most = own.chunks[at].new_tokens;
      if (count < (most > 0 ? 1 : 0) || count > most) {
        out_of_order("commit of step ", number(step), ": sequence ", at, " makes ", most > 0 ? "1 to " : "", most,
                     " tokens, got ", count);
      }
      total += count;
    }
    if (total != static_cast<std::int64_t>(tokens.size())) {
      out_of_order("commit of step ", number(step), ": the counts make ", total, " tokens, got ", tokens.size());
    }
  }
  // From here on the step is over; its own pages may go back at once.
  clock_.retired = step;
  std::size_t at = 0;
  for (std::size_t sequence = 0; sequence < num_sequences; ++sequence) {
    const Chunk& chunk = own.chunks[sequence];
    const std::size_t given = counts ? static_cast<std::size_t>((*counts)[sequence]) : 1;
    const std::size_t taken = chunk.new_tokens > 0 ? given : 0;
    land(chunk, tokens.subspan(at, taken));
    at += given;
  }
  for (PrefixCache& cache : caches_) cache.retire();
  const Seconds took = now - std::max(own.planned_at, committed_at_);
  if (took > 0) step_time_.learn(own.size, took);
  committed_at_ = now;
}

// What a step brought one of its requests.
void Scheduler::land(const Chunk& chunk, std::span<const Token> tokens) {
  Entry& entry = *chunk.entry;
  const Flight flight = entry.seat().flights.land();
  const auto made = static_cast<std::int32_t>(tokens.size());
  const bool goes_on = std::visit(
      OnState{[&](Prefilling& state) {
                if (flight.new_tokens == 0) {
                  entry.state = fill(std::move(state), flight.end());
                } else {
                  ++num_left_;  // no more pages are promised to it
                  entry.state = start_decoding(std::move(state), tokens[0]);
                }
                return true;
              },
              [&](Decoding& state) {
                state.seat->flights.move_back(flight.new_tokens - made);
                entry.state = decode(std::move(state), tokens);
                return true;
              },
              [&](Finishing& state) {
                if (const std::optional<Landed> landed = state.seat->flights.landed()) {
                  release(std::move(state), *landed);
                  erase(entry);
                }
                return false;
              },
              [](Waiting&) { return false; }, [](Preempted&) { return false; }, [](Loading&) { return false; }},
      entry.state);
  if (!goes_on) return;
  Seat& seat = entry.seat();
  if (limits_.caches.has_states()) seat.pages.end_snapshot(flight.step, true);
  seat.pages.seal(entry.request(), seat.num_cached, updates_);
  if (!entry.request().is_complete()) return;
  ended_.emplace_back(entry.id, "length");
  end(entry, Event::finish);
}

void Scheduler::fail(StepId step) {
  outstanding(step);
  if (number(step) != number(clock_.retired) + 1) {
    out_of_order("failure of step ", number(step), " before step ", number(clock_.retired) + 1);
  }
  const StepId first = step;
  const StepId last = clock_.youngest;
  clock_.retired = last;
  for (StepId lost = first; lost <= last; lost = StepId{number(lost) + 1}) {
    for (const Chunk& chunk : step_of(lost).chunks) {
      // Of a request in two lost steps the first chunk ends it all.
      Entry* entry = chunk.entry;
      if (entry == nullptr) continue;
      for (StepId later = lost; later <= last; later = StepId{number(later) + 1}) {
        for (Chunk& other : step_of(later).chunks) {
          if (&other != &chunk && other.entry == entry) other.entry = nullptr;
        }
      }
      std::visit(OnState{[&](Prefilling& state) { entry->state = rewind(std::move(state)); },
                         [&](Decoding& state) { entry->state = rewind(std::move(state)); },
                         [&](Finishing& state) {
                           state.seat->flights.crash();
                           if (const std::optional<Landed> landed = state.seat->flights.landed()) {
                             release(std::move(state), *landed);
                             erase(*entry);
                           }
                         },
                         [](Waiting&) {}, [](Preempted&) {}, [](Loading&) {}},
                 entry->state);
    }
  }
  for (PrefixCache& cache : caches_) cache.retire();
  order_.assign(running_.begin(), running_.end());
  for (Entry* entry : order_) {
    // A recurrent state was overwritten by the lost step; it starts over from a copy.
    if (limits_.caches.has_states()) {
      preempt(*entry);
    } else {
      entry->seat().pages.repeat(updates_);  // nobody knows which of the lost updates were applied
    }
  }
}

std::int32_t Scheduler::cached_tokens(RequestId id) const {
  const Entry* entry = find(id);
  return entry == nullptr ? 0 : std::max(0, entry->cached_tokens);
}

std::vector<const Transfer*> Scheduler::take_transfers() {
  std::vector<const Transfer*> started;
  for (PendingTransfer& pending : transfers_) {
    if (std::exchange(pending.is_new, false)) started.push_back(&pending.transfer);
  }
  return started;
}

void Scheduler::transferred(TransferId id, bool ok) {
  const auto found = std::ranges::find(transfers_, id, [](const PendingTransfer& p) { return p.transfer.id; });
  if (found == transfers_.end()) out_of_order("transfer ", number(id), " is not under way");
  Transfer transfer = std::move(found->transfer);
  transfers_.erase(found);
  PrefixCache& own = cache(transfer.ranks);
  if (transfer.kind == Transfer::Kind::store) {
    own.end_store(std::move(transfer), ok);
    return;
  }
  Entry& entry = *find(transfer.request);
  entry.seat().flights.end_transfer();
  if (entry.is<Finishing>()) {
    Finishing& state = std::get<Finishing>(entry.state);
    release(std::move(state), *state.seat->flights.landed());
    erase(entry);
  } else if (ok) {
    Seat& seat = entry.seat();
    const std::int32_t num_pages = seat.pages.num_pages();
    seat.pages.seal(entry.request(), num_pages * limits_.page_size(), updates_);
    entry.state = loaded(std::move(std::get<Loading>(entry.state)), num_pages * limits_.page_size());
  } else {
    entry.state = load_failed(std::move(std::get<Loading>(entry.state)));
  }
  own.unpin_host(transfer.blocks);
}

std::vector<PageEvent> Scheduler::take_events() {
  std::vector<PageEvent> events;
  for (PrefixCache& cache : caches_) {
    for (PageEvent& event : cache.take_events()) events.push_back(std::move(event));
  }
  return events;
}

std::vector<Standing> Scheduler::running() const {
  std::vector<Standing> found;
  found.reserve(running_.size());
  for (const Entry* entry : running_) {
    const State state = std::visit([]<typename S>(const S&) { return state_of<S>; }, entry->state);
    const Request& request = entry->request();
    const Seat& seat = entry->seat();
    found.push_back(
        {entry->id, state, request.prompt_length(), request.length(), seat.num_cached, seat.pages.num_pages()});
  }
  return found;
}

std::int32_t Scheduler::num_free_pages() const {
  std::int32_t total = 0;
  for (const PrefixCache& cache : caches_) total += cache.pool(full_group).num_available();
  return total;
}

std::int32_t Scheduler::num_cached_pages() const {
  std::int32_t total = 0;
  for (const PrefixCache& cache : caches_) total += cache.num_cached();
  return total;
}

// What only grows counts from the least of its kind, so that equal states are equal however they were reached.
std::uint64_t Scheduler::fingerprint() const {
  std::uint64_t digest = 0;
  const auto visit = [&digest](std::int64_t value) {
    digest = fold(digest ^ static_cast<std::uint64_t>(value) ^ keys[1], keys[2]) + keys[3];
  };
  const auto visit_seconds = [&visit](Seconds seconds) { visit(std::bit_cast<std::int64_t>(seconds)); };
  visit(num_outstanding());
  visit(is_draining_);
  visit_seconds(committed_at_);
  for (const PrefixCache& cache : caches_) cache.describe(visit);
  queue_.describe(visit);

  std::vector<const User*> users;
  for (const auto& [id, user] : users_) users.push_back(user.get());
  std::ranges::sort(users, {}, [](const User* user) { return user->id; });
  std::int64_t least = least_served_;
  for (const User* user : users) least = user->num_open > 0 ? std::min(least, user->served) : least;
  for (const User* user : users) {
    visit(number(user->id));
    if (users.size() > 1) visit((user->num_open > 0 ? user->served : std::max(user->served, least_served_)) - least);
  }
  if (users.size() > 1) visit(least_served_ - least);

  std::vector<const Entry*> entries;
  for (const auto& [id, entry] : live_) entries.push_back(entry.get());
  std::ranges::sort(entries, {}, [](const Entry* entry) { return entry->number; });
  for (const Entry* entry : entries) {
    visit(number(entry->id));
    visit(static_cast<std::int64_t>(entry->state.index()));
    visit(entry->priority);
    visit_seconds(entry->promotion);
    visit_seconds(entry->options.deadline);
    visit(entry->must_land);
    visit(entry->times_passed);
    visit(entry->awaited ? number(entry->awaited->request) * 1000000 + entry->awaited->page : -1);
    visit(entry->request().length());
    for (const Token token : entry->request().tokens()) visit(token);
    for (const Token token : entry->drafts) visit(~std::int64_t{token});
    if (entry->is_queued()) continue;
    const Seat& seat = entry->seat();
    visit(number(seat.slot.slot()));
    visit(seat.num_cached);
    seat.flights.describe(clock_.retired, visit);
    seat.pages.describe(clock_.retired, visit);
  }
  for (std::int64_t step = number(clock_.retired) + 1; step <= number(clock_.youngest); ++step) {
    for (const Chunk& chunk : step_of(StepId{step}).chunks) {
      visit(number(chunk.entry->id));
      visit(chunk.new_tokens);
    }
  }
  for (const PendingTransfer& pending : transfers_) {
    visit(static_cast<std::int64_t>(pending.transfer.kind) * 2 + pending.is_new);
    visit(number(pending.transfer.ranks));
    for (const Transfer::Pair& pair : pending.transfer.pairs) visit(number(pair.device) * 1000 + number(pair.host));
  }
  for (const std::int32_t value : updates_.entries()) visit(value);
  if (blocked_.entry != nullptr && blocked_.num_left == num_left_) {
    visit(number(blocked_.entry->id));
    visit(blocked_.lacks_slot);
    visit(number(blocked_.group));
    visit(blocked_.available);
  }
  return digest;
}

}  // namespace tsrun
