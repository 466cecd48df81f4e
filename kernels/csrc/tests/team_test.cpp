#include "team.hpp"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace tsk {

TEST("a team runs a job once on every worker, run after run") {
  for (int workers = 1; workers <= 4; ++workers) {
    std::vector<int> runs(workers);  // no atomics: ThreadSanitizer sees whether a run is over when `run` returns
    Team team(workers, {});
    for (int i = 1; i <= 200; ++i) {
      team.run([](void* given, const Worker& worker) { ++(*static_cast<std::vector<int>*>(given))[worker.index]; },
               &runs);
      CHECK(std::all_of(runs.begin(), runs.end(), [&](int count) { return count == i; }));
    }
  }
}

TEST("what a worker wrote before a barrier is there for all after it") {
  struct Ring {
    std::vector<std::int64_t> places, sums;
  };
  for (int workers = 1; workers <= 4; ++workers) {
    Ring ring{std::vector<std::int64_t>(workers), std::vector<std::int64_t>(workers)};
    Team team(workers, {});
    for (int run = 0; run < 2; ++run)
      team.run(
          [](void* given, const Worker& worker) {
            Ring& all = *static_cast<Ring*>(given);
            for (int round = 0; round < 10; ++round) {
              all.places[worker.index] = round + worker.index;
              worker.barrier();
              all.sums[worker.index] += all.places[(worker.index + 1) % worker.count];
              worker.barrier();
            }
          },
          &ring);
    for (int w = 0; w < workers; ++w) CHECK(ring.sums[w] == 2 * (9 * 10 / 2 + 10 * ((w + 1) % workers)));
  }
}

TEST("shares of rows follow each other and leave none out") {
  for (int count = 1; count <= 5; ++count)
    for (std::int64_t rows = 0; rows < 40; ++rows) {
      std::int64_t at = 0;
      for (int index = 0; index < count; ++index) {
        const Worker worker{index, count, nullptr};
        CHECK(worker.first(rows) == at && worker.last(rows) >= at);
        CHECK(worker.last(rows) - at <= rows / count + 1);
        at = worker.last(rows);
      }
      CHECK(at == rows);
    }
}

TEST("a team that never ran ends, and so does one whose workers are bound to processors that there may not be") {
  for (int workers = 1; workers <= 4; ++workers) {
    const Team unused(workers, {});
    Team bound(workers, {0, 0, 1023, 1});
    int runs = 0;
    bound.run(
        [](void* given, const Worker& worker) {
          if (worker.index == 0) ++*static_cast<int*>(given);
        },
        &runs);
    CHECK(runs == 1);
  }
  CHECK_THROWS(std::invalid_argument, Team(0, {}));
}

}  // namespace tsk
