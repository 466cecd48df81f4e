#include "model/traffic.hpp"

#include <algorithm>

namespace tsrun::model {

using Kind = Event::Kind;

namespace {

constexpr std::int32_t unlimited = 1 << 30;

std::int32_t draw_below(std::mt19937& random, std::int32_t bound) {
  return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(bound));
}

// Few beginnings, so that prompts meet; `kinds` is what the configuration allows.
RequestSpec draw_request(std::mt19937& random, const Limits& limits, bool has_drafts) {
  const auto below = [&random](std::int32_t bound) { return draw_below(random, bound); };
  for (;;) {
    RequestSpec spec{{}, 1 + below(std::max(1, limits.max_context / 3))};
    const std::int32_t beginning = below(3);
    const std::int32_t length = 1 + below(limits.max_context - 1);
    for (std::int32_t at = 0; at < length; ++at)
      spec.prompt.push_back(at * 3 < length * 2 ? 1 + (at * beginning) % 3 : 1 + below(3));
    if (!refusal(limits, length, spec.max_new_tokens).empty()) continue;
    spec.options.user = UserId{below(3)};
    spec.options.priority = below(4) == 0 ? below(num_priorities) : 0;
    spec.options.salt = static_cast<std::uint64_t>(below(8) == 0);
    if (has_drafts) spec.options.device_drafts = below(std::min(3, limits.max_step_tokens / limits.num_rank_groups));
    spec.options.needs_token = below(4) == 0;
    if (spec.options.needs_token && !limits.caches.has_states()) spec.host_drafts = below(3);
    return spec;
  }
}

}  // namespace

Configuration random_configuration(std::mt19937& random) {
  const auto below = [&random](std::int32_t bound) { return draw_below(random, bound); };
  Configuration configuration;
  Limits& limits = configuration.limits;
  const std::int32_t page_size = 1 + below(4);
  limits.caches = {page_size, {{CacheKind::full, 4 + below(20)}}};
  limits.num_rank_groups = 1 + below(3) / 2;
  limits.max_sequences = 1 + below(8);
  const std::int32_t multiple = limits.num_rank_groups * (1 + below(2));
  limits.max_step_tokens = multiple * (1 + below(12));
  limits.max_context = 4 + below(30);
  limits.depth = 1 + below(2);
  if (below(3) == 0) {
    limits.num_host_pages = 1 + below(16);
  } else {
    for (std::int32_t windows = below(3); windows > 0; --windows) {
      const std::int32_t extent = 1 + below(8);
      const auto least = static_cast<std::int32_t>(pages_for(extent, page_size)) + 2;
      limits.caches.groups.push_back({CacheKind::window, least + below(12), extent});
    }
    if (limits.num_rank_groups == 1 && below(3) == 0) {
      limits.caches.groups.push_back({CacheKind::state, 2 + below(10), page_size * (1 + below(3))});
    }
  }
  configuration.policy.prefix_cache = below(5) > 0;
  configuration.policy.keep_events = below(4) == 0;
  if (below(2) == 0)
    configuration.paddings = {{1, limits.num_rank_groups}, {1 + limits.num_rank_groups + below(6), multiple}};
  configuration.aborts = configuration.finishes = configuration.failures = unlimited;
  configuration.lost_transfers = configuration.ticks = unlimited;
  configuration.tick = 1;
  const bool has_drafts = !limits.caches.has_states() && below(2) == 0;
  const std::int32_t num_requests = 2 + below(12);
  for (std::int32_t at = 0; at < num_requests; ++at)
    configuration.requests.push_back(draw_request(random, limits, has_drafts));
  return configuration;
}

RequestSpec Traffic::draw() {
  const bool has_drafts =
      !configuration_.limits.caches.has_states() && configuration_.requests[0].options.device_drafts > 0;
  RequestSpec spec = draw_request(random_, configuration_.limits, has_drafts);
  if (below(6) == 0) spec.options.deadline = world_.now() + 1 + below(20);
  return spec;
}

void Traffic::happen() {
  const std::int32_t request = below(world_.num_requests());
  if (world_.is_replaceable(request)) world_.replace(request, draw());
  const auto transfer = below(std::max(1, static_cast<std::int32_t>(world_.device().num_transfers())));
  Event event{Kind::plan, 0, below(9)};
  switch (below(40)) {
    case 0:
      event = {Kind::abort, request};
      break;
    case 1:
      event = {Kind::finish, request};
      break;
    case 2:
      event = below(4) == 0 ? Event{Kind::fail} : Event{Kind::tick};
      break;
    case 3:
      event = {Kind::lost_move, transfer};
      break;
    case 4:
    case 5:
    case 6:
    case 7:
      event = {Kind::submit, request};
      break;
    case 8:
    case 9:
    case 10:
      event = {Kind::moved, transfer};
      break;
    case 11:
    case 12:
    case 13:
      event = {Kind::draft, request, below(3)};
      break;
    default:
      if (below(2) == 0 || !world_.is_possible(event)) event = {Kind::commit};
  }
  if (world_.is_possible(event)) world_.apply(event);
}

void Traffic::end(std::int32_t most_events) {
  for (std::int32_t at = 0; !world_.is_over(); ++at) {
    if (at == most_events) broken("requests do not end when nothing disturbs them");
    if (world_.is_possible({Kind::plan})) {
      world_.apply({Kind::plan});
    } else {
      world_.apply(world_.device().num_transfers() > 0 ? Event{Kind::moved} : Event{Kind::commit});
    }
  }
}

}  // namespace tsrun::model
