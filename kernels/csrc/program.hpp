// A bound program: the calls of a step in order, resolved for its sizes, run by a team with barriers only where they
// are needed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernel.hpp"
#include "memory.hpp"

namespace tsk {

// A size or stride: a number, or tokens T, sequences S or table columns P of the step divided by it.
struct Extent {
  std::int64_t number = 0;
  char symbol = 0;
  bool operator==(const Extent&) const = default;
};

struct StepSizes {
  std::int64_t T = 0, S = 0, P = 0;
  std::int64_t of(Extent extent) const {
    switch (extent.symbol) {
      case 'T':
        return T / extent.number;
      case 'S':
        return S / extent.number;
      case 'P':
        return P / extent.number;
      default:
        return extent.number;
    }
  }
  bool operator==(const StepSizes&) const = default;
};

// fixed: at `address`, whatever the step. tokens, sequences: in the arena of that region, `address` bytes a row from
// its beginning.
enum class Space : std::uint8_t { fixed, tokens, sequences };

struct Operand {
  Space space = Space::fixed;
  std::uint64_t address = 0;
  std::int64_t row_bytes = 0;  // in an arena: what its storage takes of a row
  std::int64_t offset = 0;     // bytes from the beginning of the storage: where a view begins
  DType dtype = DType::f32;
  std::vector<Extent> sizes, strides;
};

// Where intermediates lie while a step runs; programs that take turns share one.
struct Arena {
  Memory tokens, sequences, scratch;
};

// What must be waited for before a call: nothing; the other workers where a step has several rows, since one worker has
// all calls of a single row; or the other workers.
enum class Barrier : std::uint8_t { none, between_rows, always };

class Program {
 public:
  // The arena's bytes per token and per sequence.
  Program(std::shared_ptr<Arena> arena, std::int64_t token_bytes, std::int64_t sequence_bytes);

  // group: of a collective. Throws std::invalid_argument for a kernel that the instruction set in use lacks, or too
  // many operands or numbers.
  void add(const std::string& kernel, const std::vector<Operand>& operands, const Operand& out,
           const std::vector<double>& numbers, const std::vector<float>& constants,
           std::shared_ptr<RankGroup> group = nullptr);
  // Throws std::runtime_error when a rank of a group ended meanwhile.
  void run(Team& team, StepSizes sizes);
  // Runs it, and says how many seconds each call took the first worker, with the wait before it.
  std::vector<double> measure(Team& team, StepSizes sizes);
  // Where an operand of the last step lies.
  std::byte* address(const Operand& operand) const;
  const char* kernel_name(int call) const { return steps_.at(call).kernel->name; }
  int num_calls() const { return static_cast<int>(steps_.size()); }
  int num_barriers() const;

 private:
  struct Step {
    const Kernel* kernel;
    std::vector<Operand> operands;
    Operand out;
    std::vector<double> numbers;
    std::vector<float> constants;
    std::shared_ptr<RankGroup> group;
    Barrier barrier_before;
    bool prepared_late;  // from what the program computes
  };
  // Bytes per row that were touched since the last barrier.
  struct Access {
    Space space;
    std::int64_t begin, end, row_bytes;
    bool written;
  };

  Barrier barrier_for(const Step& step);
  void note(const Operand& operand, bool written);
  Tensor resolve(const Operand& operand) const;
  void resolve_all(int num_workers);
  void prepare(Team& team, StepSizes sizes);
  void check_groups() const;
  void enter(std::size_t call, Barrier most_left_out, const Worker& worker);
  static void work(void* self, const Worker& worker);
  static void measured_work(void* self, const Worker& worker);

  std::shared_ptr<Arena> arena_;
  const std::int64_t token_bytes_, sequence_bytes_;
  std::vector<Step> steps_;
  std::vector<Call> calls_;
  StepSizes sizes_;
  int num_workers_ = 0;
  std::vector<std::byte*> resolved_for_;  // the arena's addresses
  std::vector<Access> accesses_;
  Extent rows_;  // of the kernels since the last barrier, which are all by rows
  bool by_rows_ = true;
  std::vector<double> seconds_;
};

}  // namespace tsk
