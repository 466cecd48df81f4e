#include "team.hpp"

#include <pthread.h>
#include <sched.h>

#include <stdexcept>

#include "wait.hpp"

namespace tsk {
namespace {

// Between two kernels of a step a wait is microseconds; between two steps it may be hours.
void wait_while(const std::atomic<std::uint32_t>& value, std::uint32_t old, int spins) {
  for (int i = 0; i < spins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    spin_pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void bind(std::thread& thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  // A processor that is not ours any more is no reason to stop: the thread then runs where the system puts it.
  pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);
}

}  // namespace

Team::Team(int num_workers, const std::vector<int>& cpus, int spins) : num_workers_(num_workers), spins_(spins) {
  if (num_workers < 1) throw std::invalid_argument("a team has at least one worker");
  for (int i = 1; i < num_workers; ++i) {
    threads_.emplace_back(&Team::serve, this, i);
    if (static_cast<std::size_t>(i) < cpus.size()) bind(threads_.back(), cpus[i]);
  }
}

Team::~Team() {
  over_ = true;
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Team::run(void (*job)(void*, const Worker&), void* context) {
  job_ = job;
  context_ = context;
  if (num_workers_ > 1) {
    started_.fetch_add(1, std::memory_order_release);
    started_.notify_all();
  }
  job(context, {0, num_workers_, this});
  barrier();
}

void Team::serve(int index) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_while(started_, seen, spins_);
    ++seen;
    if (over_) return;
    job_(context_, {index, num_workers_, this});
    barrier();
  }
}

void Team::barrier() {
  if (num_workers_ == 1) return;
  const std::uint32_t round = passed_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<std::uint32_t>(num_workers_)) {
    arrived_.store(0, std::memory_order_relaxed);
    passed_.fetch_add(1, std::memory_order_release);
    passed_.notify_all();
  } else {
    wait_while(passed_, round, spins_);
  }
}

}  // namespace tsk
