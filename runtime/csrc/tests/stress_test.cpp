// Random traffic through random configurations, for the sanitizers. What is searched in full, in small, is in model/.
#include <condition_variable>
#include <iostream>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "check.hpp"
#include "model/traffic.hpp"

namespace tsrun {

using model::Configuration;
using model::Traffic;

TEST("whatever happens, every step reads what it must and every request ends") {
  std::mt19937 random(11);
  for (std::uint32_t round = 0; round < 3000; ++round) {
    const Configuration configuration = model::random_configuration(random);
    auto traffic = std::make_unique<Traffic>(configuration, round);
    traffic->world().audit_every(1 + static_cast<std::int32_t>(round % 4));
    try {
      for (std::int32_t event = 0; event < 600; ++event) traffic->happen();
      traffic->world().audit_every(1);
      traffic->end(4000);
    } catch (const model::Violation&) {
      std::cerr << "round " << round << "\n";
      throw;
    }
  }
}

namespace {

// One value at a time, from one thread to another.
template <typename T>
class Handover {
 public:
  void give(T value) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !is_full_; });
    value_ = value;
    is_full_ = true;
    changed_.notify_all();
  }
  T take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_full_; });
    is_full_ = false;
    changed_.notify_all();
    return value_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  T value_{};
  bool is_full_ = false;
};

// Reads all of a plan, as an executor does.
std::int64_t sum(const StepPlan& plan) {
  std::int64_t total = 0;
  for (const auto* array : {&plan.ids, &plan.positions, &plan.slots, &plan.spans, &plan.lengths, &plan.last,
                            &plan.follows, &plan.table_rows, &plan.table_updates, &plan.copies}) {
    for (const std::int32_t value : *array) total += value;
  }
  return total;
}

}  // namespace

TEST("a plan is read on one thread while the next is made on another") {
  Scheduler scheduler({.caches = {4, {{CacheKind::full, 40}, {CacheKind::window, 30, 8}}},
                       .max_sequences = 8,
                       .max_step_tokens = 32,
                       .max_context = 64,
                       .depth = 2});
  Handover<const StepPlan*> started;
  Handover<std::int64_t> done;
  std::thread executor([&] {
    while (const StepPlan* plan = started.take()) done.give(sum(*plan));
    done.give(0);
  });
  std::int64_t num_submitted = 0;
  const StepPlan* running = nullptr;
  for (int step = 0; step < 20000; ++step) {
    while (scheduler.num_waiting() < 4) {
      const std::vector<Token> prompt(static_cast<std::size_t>(1 + num_submitted % 30),
                                      static_cast<Token>(num_submitted % 5));
      scheduler.submit(RequestId{num_submitted}, prompt, 1 + static_cast<std::int32_t>(num_submitted % 11));
      ++num_submitted;
    }
    const StepPlan* following = scheduler.plan();
    if (step % 7 == 0) scheduler.abort(RequestId{num_submitted - 3});
    if (running != nullptr) {
      static_cast<void>(done.take());
      if (following != nullptr) started.give(following);
      scheduler.commit(running->step, std::vector<Token>(running->requests.size(), 3));
    } else if (following != nullptr) {
      started.give(following);
    }
    running = following;
  }
  if (running != nullptr) static_cast<void>(done.take());
  started.give(nullptr);
  static_cast<void>(done.take());
  executor.join();
  CHECK(num_submitted > 1000);
}

}  // namespace tsrun
