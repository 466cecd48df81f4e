#include "scheduler.hpp"

#include <algorithm>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace tsrun {

namespace {

// A visitor out of one lambda a state. There is no default: a state without its lambda does not compile.
template <typename... Cases>
struct Match : Cases... {
  using Cases::operator()...;
};

std::int64_t number(RequestId id) { return static_cast<std::int64_t>(id); }
std::int64_t number(StepId step) { return static_cast<std::int64_t>(step); }

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
[[noreturn]] void reject(RequestId id, const Parts&... why) {
  throw std::invalid_argument(text("request ", number(id), ": ", why...));
}

template <typename... Parts>
[[noreturn]] void out_of_order(const Parts&... what) {
  throw std::logic_error(text(what...));
}

std::int32_t max_pages_of_sequence(const Limits& limits) {
  return static_cast<std::int32_t>(
      std::min<std::int64_t>(limits.num_pages, pages_for(limits.max_context, limits.page_size)));
}

Limits checked(const Limits& limits) {
  const std::pair<const char*, std::int32_t> named[] = {{"num_pages", limits.num_pages},
                                                        {"page_size", limits.page_size},
                                                        {"max_sequences", limits.max_sequences},
                                                        {"max_step_tokens", limits.max_step_tokens},
                                                        {"max_context", limits.max_context}};
  for (const auto& [name, value] : named) {
    if (value < 1) throw std::invalid_argument(text(name, " must be at least 1, got ", value));
  }
  const std::int64_t num_slots = std::int64_t{limits.num_pages} * limits.page_size;
  if (num_slots > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument(text("num_pages * page_size is ", num_slots, ", slots are 32-bit"));
  }
  return limits;
}

}  // namespace

Scheduler::Scheduler(const Limits& limits)
    : limits_(checked(limits)),
      pool_(limits.num_pages),
      plan_(limits.max_step_tokens, std::min(limits.max_sequences, limits.max_step_tokens),
            max_pages_of_sequence(limits)) {}

void Scheduler::submit(RequestId id, std::span<const Token> prompt, std::int32_t max_new_tokens) {
  if (live_.contains(id)) reject(id, "already submitted and not yet ended");
  if (prompt.empty()) reject(id, "the prompt is empty");
  if (max_new_tokens < 1) reject(id, "max_new_tokens must be at least 1, got ", max_new_tokens);
  const std::int64_t length = static_cast<std::int64_t>(prompt.size()) + max_new_tokens;
  if (length > limits_.max_context) {
    reject(id, "prompt and new tokens make ", length, ", max_context is ", limits_.max_context);
  }
  // The last token is made but never fed, so it needs no room.
  const std::int64_t num_pages = pages_for(length - 1, limits_.page_size);
  if (num_pages > limits_.num_pages) {
    reject(id, "needs ", num_pages, " pages, the pool has ", limits_.num_pages);
  }
  waiting_.push_back(Waiting{Request(id, {prompt.begin(), prompt.end()}, max_new_tokens)});
  live_.insert(id);
}

void Scheduler::abort(RequestId id) {
  const auto waiting = std::ranges::find(waiting_, id, [](const Waiting& state) { return state.request.id(); });
  if (waiting != waiting_.end()) {
    live_.erase(drop(std::move(*waiting)));
    waiting_.erase(waiting);
    return;
  }
  const auto running = std::ranges::find(running_, id, [](const Running& state) { return request_of(state).id(); });
  if (running == running_.end()) return;
  if (is_outstanding_) {
    draining_.push_back(std::visit([](auto& state) { return drain(std::move(state)); }, *running));
  } else {
    live_.erase(std::visit([](auto& state) { return drop(std::move(state)); }, *running));
  }
  running_.erase(running);
}

void Scheduler::finish(RequestId id) {
  if (is_outstanding_) out_of_order("finish while step ", number(plan_.step), " is not committed");
  if (!live_.contains(id)) return;
  const auto running = std::ranges::find(running_, id, [](const Running& state) { return request_of(state).id(); });
  const bool decodes = running != running_.end() && std::holds_alternative<Decoding>(*running);
  if (!decodes) {
    out_of_order("finish of request ", number(id), ", which made no token in the last step; abort ends it");
  }
  live_.erase(tsrun::finish(std::get<Decoding>(std::move(*running))));
  running_.erase(running);
}

const StepPlan* Scheduler::plan() {
  if (is_outstanding_) out_of_order("plan while step ", number(plan_.step), " is not committed");
  chunks_.clear();
  std::int32_t budget = limits_.max_step_tokens;
  // Oldest first: an unfinished prefill is the youngest, so decodes precede it and the preempted are not yet planned.
  for (std::size_t index = 0; index < running_.size() && budget > 0; ++index) budget -= plan_chunk(index, budget);
  while (budget > 0 && can_admit()) {
    running_.push_back(admit(std::move(waiting_.front()), PageTable(limits_.page_size)));
    waiting_.pop_front();
    budget -= plan_chunk(running_.size() - 1, budget);
  }
  if (chunks_.empty()) return nullptr;
  lay_out();
  is_outstanding_ = true;
  return &plan_;
}

// Pages are taken chunk by chunk, but a request starts only when all its tokens would fit: one that starts earlier is
// soon preempted, and prefilled over and over. This also keeps the preempted out of the plan that preempted them.
bool Scheduler::can_admit() const {
  return !waiting_.empty() && num_running() < limits_.max_sequences &&
         pages_for(waiting_.front().request.length(), limits_.page_size) <= pool_.num_free();
}

// Plans the next tokens of a running request, or none when it is preempted; returns how many.
std::int32_t Scheduler::plan_chunk(std::size_t index, std::int32_t budget) {
  const std::int32_t length = request_of(running_[index]).length();
  const std::int32_t begin = num_cached(running_[index]);
  const std::int32_t wanted = begin + std::min(budget, length - begin);
  if (!reserve(index, begin, wanted)) return 0;
  const std::int32_t end = std::min(wanted, pages_of(running_[index]).capacity());
  chunks_.push_back(Chunk{request_of(running_[index]).id(), begin, end, end == length});
  return end - begin;
}

// Takes pages for [begin, end), or for a shorter chunk when the pool runs dry. For a first token it preempts the
// youngest; false when that was the request itself. The oldest alone always fits (see submit), so it is never
// preempted.
bool Scheduler::reserve(std::size_t index, std::int32_t begin, std::int32_t end) {
  while (pages_of(running_[index]).capacity() < end) {
    if (std::optional<PageLease> page = pool_.take()) {
      pages_of(running_[index]).add(std::move(*page));
    } else if (pages_of(running_[index]).capacity() > begin) {
      return true;
    } else {
      preempt_youngest();
      if (index == running_.size()) return false;
    }
  }
  return true;
}

void Scheduler::preempt_youngest() {
  waiting_.push_front(std::visit([](auto& state) { return preempt(std::move(state)); }, running_.back()));
  running_.pop_back();
  ++preemptions_;
}

void Scheduler::lay_out() {
  std::int32_t table_width = 0;
  for (std::size_t index = 0; index < chunks_.size(); ++index) {
    table_width = std::max(table_width, pages_of(running_[index]).size());
  }
  plan_.clear(StepId{num_steps_++}, table_width);
  for (std::size_t index = 0; index < chunks_.size(); ++index) {
    plan_.add(chunks_[index], request_of(running_[index]), pages_of(running_[index]));
  }
}

void Scheduler::commit(StepId step, std::span<const Token> tokens) {
  outstanding(step);
  if (tokens.size() != chunks_.size()) {
    out_of_order("commit of step ", number(step), " needs ", chunks_.size(), " tokens, one a sequence, got ",
                 tokens.size());
  }
  is_outstanding_ = false;
  std::vector<Running> still_running;
  still_running.reserve(running_.size());
  std::size_t sequence = 0;
  for (Running& running : running_) {
    // Chunks are in the order of `running_`; those passed over belong to requests aborted since the plan.
    while (sequence < chunks_.size() && chunks_[sequence].request != request_of(running).id()) ++sequence;
    std::optional<Running> next = sequence < chunks_.size()
                                      ? advance(std::move(running), chunks_[sequence], tokens[sequence])
                                      : std::move(running);
    if (next) still_running.push_back(std::move(*next));
  }
  running_ = std::move(still_running);
  for (Draining& draining : draining_) live_.erase(release(std::move(draining)));
  draining_.clear();
}

std::optional<Scheduler::Running> Scheduler::advance(Running&& running, const Chunk& chunk, Token token) {
  const auto decoding_or_done = [this](Decoding&& state) -> std::optional<Running> {
    if (!state.request.is_complete()) return std::move(state);
    live_.erase(tsrun::finish(std::move(state)));
    return std::nullopt;
  };
  return std::visit(Match{[&](Prefilling&& state) -> std::optional<Running> {
                            if (!chunk.samples) return fill(std::move(state), chunk.end);
                            return decoding_or_done(start_decoding(std::move(state), token));
                          },
                          [&](Decoding&& state) { return decoding_or_done(decode(std::move(state), token)); }},
                    std::move(running));
}

const StepPlan& Scheduler::outstanding(StepId step) const {
  if (!is_outstanding_) out_of_order("step ", number(step), " is not under way: no step is");
  if (step != plan_.step) {
    out_of_order("step ", number(step), " is not under way: step ", number(plan_.step), " is");
  }
  return plan_;
}

const Request& Scheduler::request_of(const Running& running) {
  return std::visit([](const auto& state) -> const Request& { return state.request; }, running);
}

const PageTable& Scheduler::pages_of(const Running& running) {
  return std::visit([](const auto& state) -> const PageTable& { return state.pages; }, running);
}

PageTable& Scheduler::pages_of(Running& running) {
  return std::visit([](auto& state) -> PageTable& { return state.pages; }, running);
}

std::int32_t Scheduler::num_cached(const Running& running) {
  return std::visit(Match{[](const Prefilling& state) { return state.num_cached; },
                          [](const Decoding& state) { return state.request.length() - 1; }},
                    running);
}

}  // namespace tsrun
