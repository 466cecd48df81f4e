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
  const std::pair<const char*, std::int32_t> named[] = {
      {"num_pages", limits.num_pages},         {"page_size", limits.page_size},
      {"max_sequences", limits.max_sequences}, {"max_step_tokens", limits.max_step_tokens},
      {"max_context", limits.max_context},     {"num_groups", limits.num_groups}};
  for (const auto& [name, value] : named) {
    if (value < 1) throw std::invalid_argument(text(name, " must be at least 1, got ", value));
  }
  const std::int64_t num_slots = (std::int64_t{limits.num_pages} + 1) * limits.page_size;
  if (num_slots > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument(text("(num_pages + 1) * page_size is ", num_slots, ", slots are 32-bit"));
  }
  return limits;
}

std::vector<Padding> checked(std::vector<Padding> paddings, const Limits& limits) {
  if (paddings.empty()) paddings.push_back({1, limits.num_groups});
  std::int32_t before = 0;
  for (const auto& [tokens, multiple] : paddings) {
    if (before == 0 ? tokens != 1 : tokens <= before) {
      throw std::invalid_argument(text("paddings are for 1 token and on, in rising order; got ", tokens));
    }
    if (multiple < 1 || multiple % limits.num_groups != 0 || limits.max_step_tokens % multiple != 0) {
      throw std::invalid_argument(text("steps are padded to a multiple of ", multiple, ", which ", limits.num_groups,
                                       " groups and max_step_tokens of ", limits.max_step_tokens, " do not allow"));
    }
    before = tokens;
  }
  return paddings;
}

}  // namespace

Scheduler::Scheduler(const Limits& limits, std::vector<Padding> paddings)
    : limits_(checked(limits)),
      paddings_(checked(std::move(paddings), limits)),
      budgets_(static_cast<std::size_t>(limits.num_groups)),
      plan_(limits.max_step_tokens, std::min(limits.max_sequences, limits.max_step_tokens),
            max_pages_of_sequence(limits)) {
  for (std::int32_t group = 0; group < limits.num_groups; ++group) pools_.emplace_back(limits.num_pages);
}

std::int32_t Scheduler::num_free_pages() const {
  std::int32_t total = 0;
  for (const PagePool& pool : pools_) total += pool.num_free();
  return total;
}

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
  std::ranges::fill(budgets_, limits_.max_step_tokens / limits_.num_groups);
  // In order of admission: of a group an unfinished prefill is the youngest, so decodes precede it and the preempted
  // are not yet planned.
  for (std::size_t index = 0; index < running_.size();) {
    if (plan_chunk(index)) ++index;
  }
  while (const std::optional<GroupId> group = group_for_next()) {
    running_.push_back(admit(std::move(waiting_.front()), PageTable(limits_.page_size, *group)));
    waiting_.pop_front();
    plan_chunk(running_.size() - 1);
  }
  if (chunks_.empty()) return nullptr;
  lay_out();
  is_outstanding_ = true;
  return &plan_;
}

// Where the next request is admitted: of the groups with rows left the one with most free pages, none when they are too
// few. Pages are taken chunk by chunk, but a request starts only when all its tokens would fit: one that starts earlier
// is soon preempted, and prefilled over and over. This also keeps the preempted out of the plan that preempted them.
std::optional<GroupId> Scheduler::group_for_next() const {
  if (waiting_.empty() || num_running() >= limits_.max_sequences) return std::nullopt;
  std::optional<std::size_t> best;
  for (std::size_t group = 0; group < pools_.size(); ++group) {
    const bool is_better = !best || pools_[group].num_free() > pools_[*best].num_free();
    if (budgets_[group] > 0 && is_better) best = group;
  }
  const std::int64_t wanted = pages_for(waiting_.front().request.length(), limits_.page_size);
  if (!best || pools_[*best].num_free() < wanted) return std::nullopt;
  return GroupId{static_cast<std::int32_t>(*best)};
}

// Plans the next tokens of a running request, as many as its group has rows left; false when it was preempted.
bool Scheduler::plan_chunk(std::size_t index) {
  std::int32_t& budget = this->budget(pages_of(running_[index]).group());
  if (budget == 0) return true;
  const std::int32_t length = request_of(running_[index]).length();
  const std::int32_t begin = num_cached(running_[index]);
  const std::int32_t wanted = begin + std::min(budget, length - begin);
  if (!reserve(index, begin, wanted)) return false;
  const std::int32_t end = std::min(wanted, pages_of(running_[index]).capacity());
  chunks_.push_back(Chunk{request_of(running_[index]).id(), begin, end, end == length, index, 0});
  budget -= end - begin;
  return true;
}

// Takes pages for [begin, end), or for a shorter chunk when the group's pool runs dry. For a first token it preempts
// the youngest of the group; false when that was the request itself. The oldest alone always fits (see submit), so it
// is never preempted.
bool Scheduler::reserve(std::size_t index, std::int32_t begin, std::int32_t end) {
  const GroupId group = pages_of(running_[index]).group();
  while (pages_of(running_[index]).capacity() < end) {
    if (std::optional<PageLease> page = pool(group).take()) {
      pages_of(running_[index]).add(std::move(*page));
    } else if (pages_of(running_[index]).capacity() > begin) {
      return true;
    } else if (preempt_youngest(group) == index) {
      return false;
    }
  }
  return true;
}

// Where among the running it was.
std::size_t Scheduler::preempt_youngest(GroupId group) {
  std::size_t index = running_.size() - 1;
  while (pages_of(running_[index]).group() != group) --index;
  waiting_.push_front(std::visit([](auto& state) { return preempt(std::move(state)); }, running_[index]));
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  ++preemptions_;
  return index;
}

// The rows of each group's block when the fullest needs `rows`: padded as steps of that size are.
std::int32_t Scheduler::block_for(std::int32_t rows) const {
  for (auto padding = paddings_.rbegin();; ++padding) {  // ends at the first: it is for 1 token and on
    const std::int32_t unit = padding->multiple / limits_.num_groups;
    const std::int32_t block = (rows + unit - 1) / unit * unit;
    if (block * limits_.num_groups >= padding->tokens) return block;
  }
}

// Block after block, one a group, as long as the fullest needs: a group's ranks take its block of the rows.
void Scheduler::lay_out() {
  const auto group_of = [this](const Chunk& chunk) { return pages_of(running_[chunk.running]).group(); };
  std::int32_t table_width = 0;
  for (const Chunk& chunk : chunks_) table_width = std::max(table_width, pages_of(running_[chunk.running]).size());
  const std::int32_t most = limits_.max_step_tokens / limits_.num_groups;
  const std::int32_t fullest = most - *std::ranges::min_element(budgets_);
  const std::int32_t block = block_for(fullest);
  plan_.clear(StepId{num_steps_++}, table_width);
  for (std::int32_t group = 0; group < limits_.num_groups; ++group) {
    for (Chunk& chunk : chunks_) {
      if (group_of(chunk) != GroupId{group}) continue;
      chunk.sequence = plan_.requests.size();
      plan_.add(chunk, request_of(running_[chunk.running]), pages_of(running_[chunk.running]));
    }
    plan_.pad((group + 1) * block, limits_.num_pages * limits_.page_size);
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
  auto chunk = chunks_.begin();
  for (Running& running : running_) {
    // Chunks are in the order of `running_`: one passed over belongs to a request aborted since the plan, and a request
    // without one had no rows left in its group.
    const auto own =
        std::find_if(chunk, chunks_.end(), [&](const Chunk& c) { return c.request == request_of(running).id(); });
    std::optional<Running> next =
        own != chunks_.end() ? advance(std::move(running), *own, tokens[own->sequence]) : std::move(running);
    if (own != chunks_.end()) chunk = own + 1;
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
