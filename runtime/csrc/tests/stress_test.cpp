// Random traffic, for the sanitizers; the invariants of a step are checked in tests/runtime/test_scheduler.py.
#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "scheduler.hpp"

namespace tsrun {

using Ints = std::vector<std::int32_t>;

TEST("random traffic ends with every page returned") {
  std::mt19937 random(7);
  const auto below = [&random](std::uint32_t bound) { return static_cast<std::int32_t>(random() % bound); };
  for (int round = 0; round < 200; ++round) {
    const std::int32_t groups = 1 + below(3);
    const std::int32_t multiple = groups * (1 + below(2));
    const Limits limits{1 + below(8), 1 + below(4), 1 + below(5), multiple * (1 + below(9)), 1 + below(24), groups};
    Scheduler scheduler(limits, {{1, groups}, {1 + groups + below(6), multiple}});
    std::int64_t num_submitted = 0;
    for (int step = 0; step < 100; ++step) {
      try {
        scheduler.submit(RequestId{num_submitted}, Ints(static_cast<std::size_t>(1 + below(20)), 1), 1 + below(6));
        ++num_submitted;
      } catch (const std::invalid_argument&) {
        // Too large for these limits; the next draw may fit.
      }
      const StepPlan* plan = scheduler.plan();
      if (below(4) == 0) scheduler.abort(RequestId{below(100)});
      if (plan == nullptr) continue;
      const std::vector<std::int64_t> requests = plan->requests;
      CHECK(groups > 1 || std::ranges::is_sorted(requests));
      CHECK(plan->ids.size() % static_cast<std::size_t>(groups) == 0);
      const bool makes_token = plan->samples[0] != 0;
      scheduler.commit(plan->step, Ints(requests.size(), 2));
      if (makes_token && below(8) == 0) scheduler.finish(RequestId{requests[0]});
    }
    while (const StepPlan* plan = scheduler.plan()) scheduler.commit(plan->step, Ints(plan->requests.size(), 2));
    CHECK(scheduler.num_waiting() == 0 && scheduler.num_running() == 0);
    CHECK(scheduler.num_free_pages() == groups * limits.num_pages);
  }
}

}  // namespace tsrun
