#include "model/configurations.hpp"

namespace tsrun::model {

namespace {

const std::vector<Token> shared_a{1, 1, 2, 2, 3};
const std::vector<Token> shared_b{1, 1, 2, 2, 4};
const std::vector<Token> short_prefix{1, 1};
const std::vector<Token> other{2, 1, 1};

Limits small(std::int32_t num_pages, std::int32_t page_size) {
  return {.caches = {page_size, {{CacheKind::full, num_pages}}},
          .max_sequences = 3,
          .max_step_tokens = 6,
          .max_context = 8,
          .depth = 2};
}

std::vector<RequestSpec> three() { return {{shared_a, 3}, {shared_b, 3}, {short_prefix, 3}}; }

}  // namespace

std::vector<Configuration> configurations(bool everyday) {
  std::vector<Configuration> all;
  const auto add = [&](Configuration configuration) {
    if (everyday) {
      configuration.aborts = std::min(configuration.aborts, 1);
      configuration.failures = std::min(configuration.failures, 1);
      configuration.finishes = std::min(configuration.finishes, 1);
    }
    all.push_back(std::move(configuration));
  };
  add({.name = "full attention",
       .limits = small(5, 2),
       .requests = three(),
       .aborts = 2,
       .finishes = 1,
       .failures = 2});
  add({.name = "no prefix cache",
       .limits = small(5, 2),
       .policy = {.prefix_cache = false},
       .requests = three(),
       .aborts = 2,
       .finishes = 1,
       .failures = 2});
  {
    Limits limits = small(6, 1);
    limits.max_step_tokens = 3;
    add({.name = "pages of a token",
         .limits = limits,
         .requests = {{{1, 1, 2}, 3}, {{1, 1, 1}, 3}, {{1}, 4}},
         .aborts = 1,
         .failures = 2});
  }
  {
    Limits limits = small(5, 2);
    limits.caches.groups.push_back({CacheKind::window, 4, 3});
    add({.name = "window", .limits = limits, .requests = three(), .aborts = 1, .finishes = 1, .failures = 1});
  }
  {
    Limits limits = small(6, 2);
    limits.caches.groups.push_back({CacheKind::state, 4, 2});
    add({.name = "state", .limits = limits, .requests = three(), .aborts = 1, .finishes = 1, .failures = 2});
  }
  {
    Limits limits = small(6, 2);
    limits.max_step_tokens = 4;
    limits.caches.groups.push_back({CacheKind::window, 4, 2});
    limits.caches.groups.push_back({CacheKind::state, 3, 4});
    add({.name = "window and state", .limits = limits, .requests = three(), .aborts = 1, .failures = 1});
  }
  {
    Limits limits = small(4, 2);
    limits.num_host_pages = 3;
    add({.name = "host tier",
         .limits = limits,
         .requests = three(),
         .aborts = 1,
         .finishes = 1,
         .failures = 1,
         .lost_transfers = 1});
  }
  {
    Limits limits = small(4, 2);
    limits.num_host_pages = 2;
    limits.depth = 1;
    add({.name = "host tier, depth 1",
         .limits = limits,
         .requests = three(),
         .aborts = 1,
         .failures = 1,
         .lost_transfers = 1});
  }
  {  // the second drives the first's pages out of the device, and the last finds them on the host beside the third
    Limits limits = small(5, 1);
    limits.num_host_pages = 7;
    add({.name = "loads beside steps",
         .limits = limits,
         .requests = {{{1, 2}, 1}, {{4, 4, 4, 4, 4}, 1}, {{3}, 2}, {{1, 2, 5}, 1}},
         .aborts = 1,
         .failures = 1,
         .lost_transfers = 1});
  }
  {
    Limits limits = small(4, 2);
    limits.num_rank_groups = 2;
    limits.max_step_tokens = 6;
    add({.name = "two groups of ranks",
         .limits = limits,
         .requests = three(),
         .aborts = 1,
         .finishes = 1,
         .failures = 1});
  }
  {
    std::vector<RequestSpec> requests{{short_prefix, 6}, {other, 4}, {shared_a, 2}};
    for (RequestSpec& request : requests) request.options.device_drafts = 1;
    add({.name = "device drafts", .limits = small(5, 2), .requests = std::move(requests), .aborts = 1, .failures = 1});
  }
  {
    std::vector<RequestSpec> requests{{short_prefix, 6}, {other, 5}};
    requests[0].options.device_drafts = 2;
    requests[1].options.device_drafts = 1;
    Limits limits = small(5, 2);
    limits.caches.groups.push_back({CacheKind::window, 4, 3});
    add({.name = "two device drafts and a window",
         .limits = limits,
         .requests = std::move(requests),
         .aborts = 1,
         .failures = 1});
  }
  {
    std::vector<RequestSpec> requests{{short_prefix, 4}, {shared_a, 3}, {other, 3}};
    requests[0].options.needs_token = true;
    requests[0].host_drafts = 2;
    requests[1].host_drafts = 1;
    requests[2].options.needs_token = true;
    add({.name = "host drafts", .limits = small(5, 2), .requests = std::move(requests), .aborts = 1, .failures = 1});
  }
  {
    std::vector<RequestSpec> requests{{short_prefix, 3}, {other, 2}, {shared_a, 2}};
    requests[1].options.priority = 1;
    requests[2].options.priority = 2;
    requests[0].options.deadline = 30;
    Limits limits = small(4, 2);
    limits.max_sequences = 2;
    add({.name = "priorities and a deadline",
         .limits = limits,
         .requests = std::move(requests),
         .aborts = 1,
         .failures = 1,
         .ticks = 2});
  }
  {
    std::vector<RequestSpec> requests{{short_prefix, 4}, {shared_a, 2}, {other, 2}, {{3}, 2}};
    requests[2].options.user = UserId{1};
    requests[3].options.user = UserId{1};
    requests[3].options.priority = 1;
    Limits limits = small(5, 2);
    limits.max_sequences = 2;
    add({.name = "users", .limits = limits, .requests = std::move(requests), .aborts = 1, .failures = 1, .ticks = 1});
  }
  {
    std::vector<RequestSpec> requests{{shared_a, 2}, {shared_a, 2}, {shared_b, 2}};
    requests[1].options.salt = 7;
    requests[2].options.needs_token = true;
    add({.name = "salts", .limits = small(6, 2), .requests = std::move(requests), .aborts = 1, .failures = 1});
  }
  return all;
}

}  // namespace tsrun::model
