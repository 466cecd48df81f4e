// A team of threads that runs one program: the caller is its first worker. Waiting spins for a while, then parks.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "tensor.hpp"
#include "wait.hpp"

namespace tsk {

class Team;

// One thread's part in a kernel.
struct Worker {
  int index;
  int count;
  Team* team;

  TSK_INLINE void barrier() const;
  // This worker's share of so many rows: an even part, in the order of the workers.
  TSK_INLINE std::int64_t first(std::int64_t rows) const { return (rows * index + count - 1) / count; }
  TSK_INLINE std::int64_t last(std::int64_t rows) const { return (rows * (index + 1) + count - 1) / count; }
};

class Team {
 public:
  // cpus: the processor that each worker but the first is bound to, or empty. spins: how often who waits looks before
  // it parks.
  Team(int num_workers, const std::vector<int>& cpus, int spins = patient_spins);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int num_workers() const { return num_workers_; }
  // Runs `job(context, worker)` on every worker; returns when all are done. One caller at a time.
  void run(void (*job)(void*, const Worker&), void* context);
  void barrier();

 private:
  void serve(int index);

  const int num_workers_, spins_;
  void (*job_)(void*, const Worker&) = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<std::uint32_t> started_{0};
  alignas(64) std::atomic<std::uint32_t> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> passed_{0};
  std::atomic<bool> over_{false};
  std::vector<std::thread> threads_;
};

TSK_INLINE void Worker::barrier() const { team->barrier(); }

}  // namespace tsk
