// The one shape of a kernel: operands in, `out` filled, the work shared out among the workers of a team.
#pragma once

#include <cstdint>
#include <span>

#include "team.hpp"
#include "tensor.hpp"

namespace tsk {

class RankGroup;

constexpr int max_operands = 8;
constexpr int max_numbers = 12;

// A call of an op with every address resolved. Which numbers and constants a kernel takes, and in which order, is said
// where it is registered (`tskernels/simd.py`).
struct Call {
  Tensor operands[max_operands];
  int num_operands = 0;
  Tensor out;                        // of an op that works in place: its first operand
  double numbers[max_numbers] = {};  // attributes and coordinates
  const float* constants = nullptr;  // what was computed when the program was compiled
  std::int64_t num_constants = 0;
  RankGroup* group = nullptr;    // of a collective: the ranks of its axis
  void* prepared = nullptr;      // what `prepare` has made
  std::byte* scratch = nullptr;  // as much as `scratch_bytes` asked for, shared by all workers, 64-byte aligned
};

// rows: a worker reads and writes only its own rows (`Worker::first` to `last` of the leading dimension) of what has
// rows, so that such kernels follow each other without a barrier. whole: anything else.
enum class Partition : std::uint8_t { rows, whole };

struct Kernel {
  const char* name;
  Partition partition;
  void (*run)(const Call&, const Worker&);
  std::int64_t (*scratch_bytes)(const Call&, int num_workers) = nullptr;
  // Called by one thread in each step that the call is part of, once its operands are filled: sets `prepared`.
  void (*prepare)(Call&) = nullptr;
  int prepared_from = 0;  // the operand that `prepare` reads
};

// The kernels of each instruction set, all under the same names; null where the machine lacks it.
std::span<const Kernel> avx512_bf16_kernels();
std::span<const Kernel> avx512_kernels();
std::span<const Kernel> avx2_kernels();

// `avx512_bf16`, `avx512`, `avx2`: the best that this processor has, or the one that was chosen; null when it has none.
const char* isa();
// Use another instruction set, for tests; throws std::invalid_argument when the processor lacks it.
void use_isa(const char* name);
bool has_isa(const char* name);
// The kernel of that name for the instruction set in use; null when there is none.
const Kernel* find_kernel(const char* name);

}  // namespace tsk
