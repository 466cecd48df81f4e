#include "model/soak.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>

#include "model/arena.hpp"
#include "model/traffic.hpp"

namespace tsrun::model {

namespace {

double resident_megabytes() {
  long pages = 0;
  long resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr || std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
  if (file != nullptr) std::fclose(file);
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1e6;
}

Configuration busy(std::int32_t num_host_pages) {
  Configuration configuration{.name = "soak",
                              .limits = {.caches = {4, {{CacheKind::full, 64}}},
                                         .max_sequences = 8,
                                         .max_step_tokens = 32,
                                         .max_context = 48,
                                         .num_host_pages = num_host_pages,
                                         .depth = 2},
                              .requests = std::vector<RequestSpec>(24, {{1, 2, 3}, 2})};
  if (num_host_pages == 0) {
    configuration.limits.caches.groups.push_back({CacheKind::window, 40, 8});
    configuration.limits.caches.groups.push_back({CacheKind::state, 20, 8});
  }
  constexpr std::int32_t unlimited = 1 << 30;
  configuration.aborts = configuration.finishes = configuration.failures = unlimited;
  configuration.lost_transfers = configuration.ticks = unlimited;
  configuration.tick = 1;
  if (num_host_pages > 0) configuration.requests[0].options.device_drafts = 1;
  return configuration;
}

bool soak_one(const Configuration& configuration, std::int64_t steps) {
  const auto traffic = std::make_unique<Traffic>(configuration, 5);
  World& world = traffic->world();
  world.audit_every(500);
  const auto began = std::chrono::steady_clock::now();
  double first = 0;
  double now = 0;
  for (std::int64_t tenth = 1; tenth <= 10; ++tenth) {
    while (world.steps() < tenth * steps / 10) traffic->happen();
    now = resident_megabytes();
    if (tenth == 1) first = now;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    std::printf("  %lld steps, %.1f MB, %lld preemptions, %.0f s\n", static_cast<long long>(world.steps()), now,
                static_cast<long long>(world.scheduler().preemptions()), seconds);
    std::fflush(stdout);
  }
  world.audit_every(1);
  traffic->end(4000);
  if (now - first < 2) return true;
  std::printf("  memory grew by %.1f MB\n", now - first);
  return false;
}

std::int64_t allocations_of(std::int32_t depth) {
  const std::int32_t num_running = 64;
  const std::int32_t num_steps = 1000;
  Scheduler scheduler({.caches = {16, {{CacheKind::full, 64 * 100}, {CacheKind::window, 64 * 12, 64}}},
                       .max_sequences = num_running,
                       .max_step_tokens = 256,
                       .max_context = 1600,
                       .depth = depth});
  for (std::int32_t at = 0; at < num_running; ++at) {
    const std::vector<Token> prompt(static_cast<std::size_t>(20 + at), at);
    scheduler.submit(RequestId{at}, prompt, 1500);
  }
  std::vector<Token> tokens;
  tokens.reserve(num_running);
  auto step = [&, running = static_cast<const StepPlan*>(nullptr)]() mutable {
    const StepPlan* planned = scheduler.plan();
    const StepPlan* over = depth > 1 ? std::exchange(running, planned) : planned;
    if (over == nullptr) return;
    tokens.assign(over->requests.size(), 9);
    scheduler.commit(over->step, tokens);
  };
  for (std::int32_t at = 0; at < 100; ++at) step();
  const std::int64_t before = Arena::num_allocations();
  for (std::int32_t at = 0; at < num_steps; ++at) step();
  return Arena::num_allocations() - before;
}

}  // namespace

bool soak(std::int64_t steps) {
  bool holds = true;
  for (const std::int32_t num_host_pages : {0, 48}) {
    std::printf("soak with %s\n", num_host_pages == 0 ? "a window and states" : "a host tier and drafts");
    const Configuration configuration = busy(num_host_pages);
    try {
      holds = soak_one(configuration, steps / 2) && holds;
    } catch (const std::exception& error) {
      std::printf("  %s\n", error.what());
      holds = false;
    }
  }
  return holds;
}

bool decodes_without_allocation() {
  bool holds = true;
  for (const std::int32_t depth : {1, 2}) {
    const std::int64_t count = allocations_of(depth);
    std::printf("1000 steps of 64 decoding requests at depth %d: %lld allocations\n", depth,
                static_cast<long long>(count));
    holds = holds && count == 0;
  }
  return holds;
}

}  // namespace tsrun::model
