// Products of a thread block, or of a pair, on Blackwell's tensor cores (tcgen05): accumulators in tensor memory,
// operands in shared memory. `group` is 1 or 2 blocks, the same in all of a kernel.
#pragma once

#include "ptx.cuh"

namespace tcgen05 {

// Tensor memory has 128 lanes of 512 columns of 32 bits; an address has the lane in its upper half. A warp reaches the
// 32 lanes of its number, modulo four. A product of 64 rows has 16 of them in each of these: lanes 0 to 15, or 16
// to 31.
constexpr uint32_t upper_lanes = 16u << 16;

__device__ __forceinline__ uint32_t warp_lanes() { return threadIdx.x / 32 % 4 * 32u << 16; }

// A warp, of a pair one in each block; the address comes into shared memory.
template <int columns, int group = 1>
__device__ __forceinline__ void allocate(uint32_t& address) {
  asm volatile(
      "tcgen05.alloc.cta_group::%2.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(ptx::shared_address(&address)),
      "n"(columns), "n"(group)
      : "memory");
  asm volatile("tcgen05.relinquish_alloc_permit.cta_group::%0.sync.aligned;" ::"n"(group) : "memory");
}

template <int columns, int group = 1>
__device__ __forceinline__ void release(uint32_t address) {
  asm volatile("tcgen05.dealloc.cta_group::%2.sync.aligned.b32 %0, %1;" ::"r"(address), "n"(columns), "n"(group));
}

// Around a barrier: orders accesses to tensor memory before it with those after it.
__device__ __forceinline__ void fence_before_sync() { asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory"); }
__device__ __forceinline__ void fence_after_sync() { asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory"); }

// As for wgmma: blocks of 64 bf16 columns with a 128-byte swizzle.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, int block_bytes) {
  constexpr uint64_t swizzle_128 = 2ull << 61, version = 1ull << 46, eight_rows = 1024 >> 4;
  return swizzle_128 | version | eight_rows << 32 | static_cast<uint64_t>(block_bytes >> 4) << 16 |
         (address & 0x3ffff) >> 4;
}

// Of bf16 products summed in f32; columns_contiguous: of the second operand.
__device__ constexpr uint32_t instruction(int rows, int columns, bool columns_contiguous) {
  return 1u << 4 | 1u << 7 | 1u << 10 | static_cast<uint32_t>(columns_contiguous) << 16 |
         static_cast<uint32_t>(columns / 8) << 17 | static_cast<uint32_t>(rows / 16) << 24;
}

// One thread: d (+)= a b, 16 deep. Of a pair each block has half of the rows of a and of d, and half of the columns of
// b, at the same addresses.
template <int group = 1>
__device__ __forceinline__ void multiply(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\ntcgen05.mma.cta_group::%5.kind::f16 [%0], %1, %2, %3, p;\n}" ::"r"(d),
      "l"(a), "l"(b), "r"(instruction), "r"(static_cast<int>(accumulate)), "n"(group)
      : "memory");
}

// Arrive at the barrier when all products that this thread began are done.
__device__ __forceinline__ void commit(uint64_t& barrier) {
  asm volatile(
      "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(ptx::shared_address(&barrier))
      : "memory");
}

// The same at this barrier of both blocks of a pair, when all products of the pair are done that this thread began.
__device__ __forceinline__ void commit_to_both(uint64_t& barrier) {
  asm volatile(
      "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%0], %1;" ::"r"(
          ptx::shared_address(&barrier)),
      "h"(static_cast<uint16_t>(3))
      : "memory");
}

// clang-format off: lists of registers
// 32 columns of this warp's lanes, a lane each thread; there after `wait_loads`.
__device__ __forceinline__ void load(float (&d)[32], uint32_t from) {
    asm volatile(
        "tcgen05.ld.sync.aligned.32x32b.x32.b32 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, [%32];"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]), "=f"(d[6]), "=f"(d[7]), "=f"(d[8]), "=f"(d[9]),
          "=f"(d[10]), "=f"(d[11]), "=f"(d[12]), "=f"(d[13]), "=f"(d[14]), "=f"(d[15]), "=f"(d[16]), "=f"(d[17]), "=f"(d[18]),
          "=f"(d[19]), "=f"(d[20]), "=f"(d[21]), "=f"(d[22]), "=f"(d[23]), "=f"(d[24]), "=f"(d[25]), "=f"(d[26]), "=f"(d[27]),
          "=f"(d[28]), "=f"(d[29]), "=f"(d[30]), "=f"(d[31])
        : "r"(from)
        : "memory");
}

// There, after `wait_stores`.
__device__ __forceinline__ void store(uint32_t to, const float (&d)[32]) {
    asm volatile(
        "tcgen05.st.sync.aligned.32x32b.x32.b32 [%32], "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31};" ::
          "f"(d[0]), "f"(d[1]), "f"(d[2]), "f"(d[3]), "f"(d[4]), "f"(d[5]), "f"(d[6]), "f"(d[7]), "f"(d[8]), "f"(d[9]),
          "f"(d[10]), "f"(d[11]), "f"(d[12]), "f"(d[13]), "f"(d[14]), "f"(d[15]), "f"(d[16]), "f"(d[17]), "f"(d[18]), "f"(d[19]),
          "f"(d[20]), "f"(d[21]), "f"(d[22]), "f"(d[23]), "f"(d[24]), "f"(d[25]), "f"(d[26]), "f"(d[27]), "f"(d[28]), "f"(d[29]),
          "f"(d[30]), "f"(d[31]),
          "r"(to)
        : "memory");
}
// clang-format on

__device__ __forceinline__ void wait_loads() { asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_stores() { asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory"); }

}  // namespace tcgen05
