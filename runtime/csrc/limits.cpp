#include "limits.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "flights.hpp"
#include "text.hpp"

namespace tsrun {

namespace {

template <typename... Parts>
[[noreturn]] void invalid(const Parts&... what) {
  throw std::invalid_argument(text(what...));
}

void check_group(const Limits& limits, std::size_t at) {
  const CacheGroup& group = limits.caches.groups[at];
  if (at == 0) return;
  const bool is_window = group.kind == CacheKind::window;
  const char* name = is_window ? "windows" : "states";
  if (group.extent < 1) invalid(name, ": the extent must be at least 1 token, got ", group.extent);
  if (is_window) {
    const std::int64_t least = pages_for(group.extent, limits.page_size()) + 2;
    if (group.num_pages < least) {
      invalid("windows: a window of ", group.extent, " tokens needs at least ", least, " pages, got ", group.num_pages);
    }
  } else {
    if (group.num_pages < 2) {
      invalid("states: needs at least 2 pages, one to write and a copy to start from, got ", group.num_pages);
    }
    if (group.extent % limits.page_size() != 0) {
      invalid("states: ", group.extent, " tokens between snapshots are no multiple of page_size, ", limits.page_size());
    }
  }
}

}  // namespace

Limits checked(Limits limits) {
  const std::pair<const char*, std::int32_t> named[] = {{"num_pages", limits.caches.groups[0].num_pages},
                                                        {"page_size", limits.page_size()},
                                                        {"max_sequences", limits.max_sequences},
                                                        {"max_step_tokens", limits.max_step_tokens},
                                                        {"max_context", limits.max_context},
                                                        {"num_rank_groups", limits.num_rank_groups},
                                                        {"depth", limits.depth}};
  for (const auto& [name, value] : named) {
    if (value < 1) invalid(name, " must be at least 1, got ", value);
  }
  if (limits.depth > max_depth) invalid("depth must be at most ", max_depth, ", got ", limits.depth);
  if (limits.num_host_pages < 0) invalid("num_host_pages must not be negative, got ", limits.num_host_pages);
  if (limits.num_host_pages > 0 && limits.caches.num_groups() > 1) {
    invalid("host pages hold full attention only: leave num_host_pages, windows or states out");
  }
  std::int32_t num_states = 0;
  for (std::size_t at = 0; at < limits.caches.groups.size(); ++at) {
    check_group(limits, at);
    num_states += limits.caches.groups[at].kind == CacheKind::state;
    const std::int64_t num_slots = (std::int64_t{limits.caches.groups[at].num_pages} + 1) * limits.page_size();
    if (num_slots > std::numeric_limits<std::int32_t>::max()) {
      invalid("(num_pages + 1) * page_size is ", num_slots, ", slots are 32-bit");
    }
  }
  if (num_states > 1) invalid("states: one group, got ", num_states);
  return limits;
}

std::vector<Padding> checked(std::vector<Padding> paddings, const Limits& limits) {
  if (paddings.empty()) paddings.push_back({1, limits.num_rank_groups});
  std::int32_t before = 0;
  for (const auto& [tokens, multiple] : paddings) {
    if (before == 0 ? tokens != 1 : tokens <= before) {
      invalid("paddings are for 1 token and on, in rising order; got ", tokens);
    }
    if (multiple < 1 || multiple % limits.num_rank_groups != 0 || limits.max_step_tokens % multiple != 0) {
      invalid("steps are padded to a multiple of ", multiple, ", which ", limits.num_rank_groups,
              " groups and max_step_tokens of ", limits.max_step_tokens, " do not allow");
    }
    before = tokens;
  }
  return paddings;
}

Policy checked(Policy policy) {
  if (!(policy.aging > 0)) invalid("aging_seconds must be more than 0, got ", policy.aging);
  if (!(policy.floor >= 0) || !std::isfinite(policy.floor)) {
    invalid("floor must be tokens per second, 0 or more, got ", policy.floor);
  }
  if (policy.scored_rows < 1) invalid("scored_rows must be at least 1, got ", policy.scored_rows);
  return policy;
}

void check_finite(Seconds now) {
  if (!std::isfinite(now)) invalid("now must be a time in seconds, got ", now);
}

std::string refusal(const Limits& limits, std::int64_t prompt_tokens, std::int64_t max_new_tokens) {
  if (prompt_tokens < 1) return "the prompt is empty";
  if (max_new_tokens < 1) return text("max_new_tokens must be at least 1, got ", max_new_tokens);
  // Each by itself first, so that the sum is one.
  if (std::max(prompt_tokens, max_new_tokens) > limits.max_context) {
    return text("prompt and new tokens make more than max_context, ", limits.max_context);
  }
  const std::int64_t length = prompt_tokens + max_new_tokens;
  if (length > limits.max_context) {
    return text("prompt and new tokens make ", length, ", max_context is ", limits.max_context);
  }
  // The last token is made but never fed, so it needs no room.
  const std::int64_t wanted = pages_for(length - 1, limits.page_size());
  const std::int32_t most = limits.caches[full_group].num_pages;
  if (wanted > most) return text("needs ", wanted, " pages, the pool has ", most);
  return "";
}

}  // namespace tsrun
