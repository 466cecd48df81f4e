#include "model/world.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace tsrun::model {

using Kind = Event::Kind;

std::string name_of(const Event& event) {
  constexpr const char* names[] = {"submit", "plan",  "commit",    "fail",  "abort",
                                   "finish", "moved", "lost_move", "draft", "tick"};
  std::string name = names[static_cast<std::size_t>(event.kind)];
  switch (event.kind) {
    case Kind::submit:
    case Kind::abort:
    case Kind::finish:
    case Kind::moved:
    case Kind::lost_move:
      return name + " " + std::to_string(event.which);
    case Kind::draft:
      return name + " " + std::to_string(event.which) + ", " + std::to_string(event.choice) + " right";
    case Kind::plan:
      return event.choice == 0 ? name : name + ", drafts " + std::to_string(event.choice);
    case Kind::commit:
    case Kind::fail:
    case Kind::tick:
      return name;
  }
  return name;
}

World::World(const Configuration& configuration, Fault fault)
    : configuration_(configuration),
      fault_(fault),
      scheduler_(configuration.limits, configuration.policy, configuration.paddings),
      device_(configuration.limits, fault) {
  for (const RequestSpec& spec : configuration.requests) {
    requests_.push_back({spec, Reference(spec), RequestId{static_cast<std::int64_t>(requests_.size())},
                         static_cast<std::int32_t>(spec.prompt.size())});
    most_drafts_ = std::max(most_drafts_, spec.options.device_drafts);
    has_one_user_ = has_one_user_ && spec.options.user == configuration.requests[0].options.user;
  }
  // A digit for each of two sequences; a third has the first's outcome.
  num_choices_ = (most_drafts_ + 1) * (most_drafts_ + 1);
}

bool World::is_in_step(RequestId id) const {
  const Entry* entry = Audit::entry(scheduler_, id);
  return entry != nullptr && !entry->is_queued() && entry->seat().flights.num_steps() > 0;
}

void World::events(std::vector<Event>& found) const {
  found.clear();
  for (std::int32_t at = 0; at < num_requests(); ++at) {
    if (is_possible({Kind::submit, at})) found.push_back({Kind::submit, at});
  }
  if (is_possible({Kind::plan})) {
    for (std::int32_t choice = 0; choice < num_choices_; ++choice) found.push_back({Kind::plan, 0, choice});
  }
  for (std::int32_t at = 0; at < num_requests(); ++at) {
    for (const Kind kind : {Kind::abort, Kind::finish}) {
      if (is_possible({kind, at})) found.push_back({kind, at});
    }
    const std::int32_t drafts = requests_[static_cast<std::size_t>(at)].spec.host_drafts;
    for (std::int32_t right = 0; right <= drafts; ++right) {
      if (is_possible({Kind::draft, at, right})) found.push_back({Kind::draft, at, right});
    }
  }
  for (std::int32_t at = 0; at < static_cast<std::int32_t>(device_.num_transfers()); ++at) {
    for (const Kind kind : {Kind::moved, Kind::lost_move}) {
      if (is_possible({kind, at})) found.push_back({kind, at});
    }
  }
  for (const Kind kind : {Kind::commit, Kind::fail, Kind::tick}) {
    if (is_possible({kind})) found.push_back({kind});
  }
}

bool World::is_possible(const Event& event) const {
  const auto request = [&]() -> const Requested* {
    if (event.which >= num_requests()) return nullptr;
    return &requests_[static_cast<std::size_t>(event.which)];
  };
  switch (event.kind) {
    case Kind::submit:
      return request() != nullptr && request()->status == Status::fresh;
    case Kind::plan:
      return device_.num_running() < configuration_.limits.depth && !planned_nothing_;
    case Kind::commit:
      return !device_.is_idle();
    case Kind::fail:
      return !device_.is_idle() && failures_ < configuration_.failures;
    case Kind::abort:
      return request() != nullptr && request()->status == Status::open && aborts_ < configuration_.aborts;
    case Kind::finish:
      return request() != nullptr && request()->status == Status::open && finishes_ < configuration_.finishes &&
             request()->known > static_cast<std::int32_t>(request()->spec.prompt.size());
    case Kind::moved:
      return event.which < static_cast<std::int32_t>(device_.num_transfers());
    case Kind::lost_move:
      return event.which < static_cast<std::int32_t>(device_.num_transfers()) &&
             lost_transfers_ < configuration_.lost_transfers;
    case Kind::draft:
      return request() != nullptr && request()->status == Status::open && request()->spec.host_drafts > 0 &&
             !request()->has_drafts && request()->known > static_cast<std::int32_t>(request()->spec.prompt.size()) &&
             !is_in_step(request()->id);
    case Kind::tick:
      return ticks_ < configuration_.ticks;
  }
  return false;
}

void World::apply(const Event& event) {
  const auto which = static_cast<std::size_t>(event.which);
  planned_nothing_ = false;
  switch (event.kind) {
    case Kind::submit: {
      Requested& request = requests_[which];
      scheduler_.submit(request.id, request.spec.prompt, request.spec.max_new_tokens, request.spec.options, now_);
      request.status = Status::open;
      break;
    }
    case Kind::plan:
      plan(event.choice);
      break;
    case Kind::commit:
      commit();
      break;
    case Kind::fail:
      ++failures_;
      scheduler_.fail(device_.oldest());
      device_.lose();
      break;
    case Kind::abort:
      ++aborts_;
      requests_[which].status = Status::ended;
      scheduler_.abort(requests_[which].id);
      break;
    case Kind::finish:
      ++finishes_;
      requests_[which].status = Status::ended;
      scheduler_.finish(requests_[which].id);
      break;
    case Kind::moved:
    case Kind::lost_move: {
      const TransferId transfer = device_.transfer(which);
      lost_transfers_ += event.kind == Kind::lost_move;
      device_.end(which, event.kind == Kind::moved);
      scheduler_.transferred(transfer, event.kind == Kind::moved);
      break;
    }
    case Kind::draft:
      draft(requests_[which], event.choice);
      break;
    case Kind::tick:
      ++ticks_;
      now_ += configuration_.tick;
      break;
  }
  hear_of_ended();
  start_transfers();
  if (fault_ == Fault::free_held_page) Audit::free_held_page(scheduler_);
  if (fault_ == Fault::lose_page && num_steps_ == 3 && event.kind == Kind::plan) Audit::lose_free_page(scheduler_);
  if (++num_events_ % audit_every_ == 0) check();
}

void World::plan(std::int32_t choice) {
  std::vector<RequestId> oldest;
  for (std::int32_t ranks = 0; ranks < configuration_.limits.num_rank_groups; ++ranks) {
    const Entry* entry = Audit::oldest(scheduler_, RankGroupId{ranks});
    if (entry != nullptr) oldest.push_back(entry->id);
  }
  const StepPlan* planned = scheduler_.plan(now_);
  hear_of_ended();
  for (const Requested& request : requests_) {
    if (request.status == Status::open && request.spec.options.deadline <= now_)
      broken("a deadline passed, and nothing was said");
  }
  for (const RequestId id : oldest) {  // between users the youngest of one with many may be another's oldest
    const Entry* entry = Audit::entry(scheduler_, id);
    if (has_one_user_ && entry != nullptr && entry->is<Preempted>()) broken("the oldest request was preempted");
  }
  if (planned == nullptr) {
    planned_nothing_ = true;
    const bool is_open =
        std::ranges::any_of(requests_, [](const Requested& request) { return request.status == Status::open; });
    if (is_open && device_.is_idle() && !Audit::has_transfers(scheduler_)) {
      broken("requests are open, nothing is under way, and nothing is planned");
    }
    return;
  }
  ++num_steps_;
  std::vector<Job> jobs;
  std::vector<std::int32_t> drafts;
  std::int32_t num_drafting = 0;
  for (const std::int64_t id : planned->requests) {
    const Requested& request = requested(RequestId{id});
    if (number(request.id) != id || request.status != Status::open)
      broken("request ", id, " is in a step, and is not open");
    if (request.spec.options.needs_token && planned->follows[jobs.size()] >= 0)
      broken("request ", id, " does not wait for its token");
    jobs.push_back({&request.reference, request.known});
    const std::int32_t base = most_drafts_ + 1;
    const bool is_drafting = request.spec.options.device_drafts > 0;
    drafts.push_back(is_drafting ? (num_drafting % 2 == 0 ? choice % base : choice / base) : 0);
    num_drafting += is_drafting;
  }
  device_.run(*planned, scheduler_, jobs, drafts);
}

void World::commit() {
  const StepId step = device_.oldest();
  std::vector<Token> tokens;
  std::vector<std::int32_t> counts;
  bool has_drafts = false;
  for (const Device::Sequence& sequence : device_.oldest_sequences()) {
    const std::vector<Token>& right = sequence.reference->tokens;
    const std::int32_t last = sequence.begin + sequence.kept();
    for (std::int32_t at = last - sequence.made + 1; at <= last; ++at)
      tokens.push_back(right[static_cast<std::size_t>(at)]);
    counts.push_back(sequence.made);
    has_drafts = has_drafts || sequence.new_tokens > 1;
    if (fault_ == Fault::overcount && sequence.made < sequence.new_tokens) {
      ++counts.back();
      tokens.push_back(7);
    }
  }
  if (!has_drafts) {  // as without drafts: a token for each, ignored where it makes none
    tokens.clear();
    for (const Device::Sequence& sequence : device_.oldest_sequences()) {
      const auto last = static_cast<std::size_t>(sequence.begin + sequence.rows);
      tokens.push_back(sequence.new_tokens > 0 ? sequence.reference->tokens[last] : 0);
    }
  }
  for (const Device::Sequence& sequence : device_.oldest_sequences()) {
    Requested& request = requested(sequence.request);
    if (request.id != sequence.request || request.status != Status::open || sequence.new_tokens == 0) continue;
    request.known = sequence.begin + sequence.kept() + 1;
    request.has_drafts = false;
  }
  device_.end();
  if (has_drafts) {
    scheduler_.commit(step, tokens, counts, now_);
  } else {
    scheduler_.commit(step, tokens, {}, now_);
  }
}

void World::draft(Requested& request, std::int32_t num_right) {
  std::vector<Token> tokens;
  for (std::int32_t at = 0; at < request.spec.host_drafts; ++at) {
    const auto position = static_cast<std::size_t>(request.known + at);
    const Token right = position < request.reference.tokens.size() ? request.reference.tokens[position] : 1;
    tokens.push_back(at < num_right ? right : right + 5);
  }
  scheduler_.draft(request.id, tokens);
  request.has_drafts = true;
}

void World::hear_of_ended() {
  for (const auto& [id, why] : scheduler_.take_ended()) {
    Requested& request = requested(id);
    if (request.id != id || request.status != Status::open) broken("request ", number(id), " ended twice");
    request.status = Status::ended;
    const bool is_complete = request.known == static_cast<std::int32_t>(request.reference.tokens.size());
    if (std::string_view(why) == "length") {
      if (!is_complete) broken("request ", number(id), " ended by length with ", request.known, " tokens");
    } else if (request.spec.options.deadline > now_) {
      broken("request ", number(id), " ended before its deadline");
    }
  }
  for (const Requested& request : requests_) {
    if (request.status == Status::open && request.known == static_cast<std::int32_t>(request.reference.tokens.size())) {
      broken("request ", number(request.id), " has all its tokens, and did not end");
    }
  }
}

void World::start_transfers() {
  for (const Transfer* transfer : scheduler_.take_transfers()) device_.begin(*transfer);
}

bool World::is_over() const {
  return device_.is_idle() && device_.num_transfers() == 0 &&
         std::ranges::none_of(requests_, [](const Requested& request) { return request.status == Status::open; });
}

void World::check() {
  Audit::check(scheduler_);
  device_.settle(scheduler_);
  for (const Requested& request : requests_) {
    const Entry* entry = Audit::entry(scheduler_, request.id);
    if (request.status == Status::open && (entry == nullptr || entry->is<Finishing>()))
      broken("an open request is gone");
    if (request.status == Status::open && entry->request().length() != request.known) broken("a token is lost");
    if (request.status == Status::ended && entry != nullptr && !entry->is<Finishing>()) broken("a request did not end");
  }
  if (!is_over()) return;
  if (scheduler_.num_waiting() + scheduler_.num_running() > 0) broken("requests are left when all have ended");
  for (std::int32_t ranks = 0; ranks < configuration_.limits.num_rank_groups; ++ranks) {
    const PrefixCache& cache = Audit::cache(scheduler_, RankGroupId{ranks});
    for (std::int32_t group = 0; group < cache.layout().num_groups(); ++group) {
      const PagePool& pool = cache.pool(CacheGroupId{group});
      if (pool.num_available() != pool.num_pages()) broken("pages are in use when all requests have ended");
    }
  }
}

bool World::is_replaceable(std::int32_t request) const {
  const Requested& old = requests_[static_cast<std::size_t>(request)];
  return old.status == Status::ended && Audit::entry(scheduler_, old.id) == nullptr && !is_in_step(old.id);
}

void World::replace(std::int32_t request, const RequestSpec& spec) {
  Requested& old = requests_[static_cast<std::size_t>(request)];
  const RequestId next{number(old.id) + num_requests()};
  old = {spec, Reference(spec), next, static_cast<std::int32_t>(spec.prompt.size())};
  most_drafts_ = std::max(most_drafts_, spec.options.device_drafts);
  has_one_user_ = has_one_user_ && spec.options.user == configuration_.requests[0].options.user;
}

std::uint64_t World::fingerprint() const {
  std::uint64_t digest = scheduler_.fingerprint();
  const auto visit = [&digest](std::int64_t value) {
    digest = fold(digest ^ static_cast<std::uint64_t>(value) ^ keys[0], keys[3]) + keys[1];
  };
  for (const Requested& request : requests_) {
    visit(static_cast<std::int64_t>(request.status) * 1000000 + request.known * 2 + request.has_drafts);
  }
  for (const std::int32_t value : {aborts_, finishes_, failures_, lost_transfers_, ticks_}) visit(value);
  visit(std::bit_cast<std::int64_t>(now_));
  visit(planned_nothing_);
  device_.describe(scheduler_, visit);
  return digest;
}

}  // namespace tsrun::model
