// Thin functions around instructions of PTX that C++ has no name for: what both generations of tensor-core GPUs have in
// common.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- mbarriers: a phase ends when all arrivals and all announced bytes are there ---

__device__ __forceinline__ void init_barrier(uint64_t& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// Makes barriers that were just initialized known to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint64_t& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

__device__ __forceinline__ void arrive_and_expect(uint64_t& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

// Until the phase of this parity has ended; of a fresh barrier the phase of parity 1 has.
__device__ __forceinline__ void wait(uint64_t& barrier, int parity) {
  int done;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(&barrier)), "r"(parity)
                 : "memory");
  } while (!done);
}

// --- clusters: blocks that reach each other's shared memory ---

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of the cluster; what they did before is done for all.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// The address of what lies at the same place in block 0 of the cluster.
__device__ __forceinline__ uint32_t leader_address(const void* pointer) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(address) : "r"(shared_address(pointer)));
  return address;
}

// As `arrive`, at the leader's barrier.
__device__ __forceinline__ void arrive_at_leader(uint64_t& barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(leader_address(&barrier))
               : "memory");
}

// As `wait`, for what threads of other blocks did before they arrived.
__device__ __forceinline__ void wait_for_cluster(uint64_t& barrier, int parity) {
  int done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, "
        "p;\n}"
        : "=r"(done)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

// --- the tensor copy engine (TMA) ---

__device__ __forceinline__ void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// A box of a tensor of three dimensions into shared memory; its bytes count towards the barrier.
__device__ __forceinline__ void load_box(void* to, const CUtensorMap& map, int x, int y, int z, uint64_t& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(&barrier))
      : "memory");
}

// The same of a tensor of five dimensions.
__device__ __forceinline__ void load_box(void* to, const CUtensorMap& map, int x, int y, int z, int u, int v,
                                         uint64_t& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, "
      "%6}], [%7];" ::"r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v), "r"(shared_address(&barrier))
      : "memory");
}

// A box into the second-level cache.
__device__ __forceinline__ void prefetch_box(const CUtensorMap& map, int x, int y, int z) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(&map), "r"(x), "r"(y), "r"(z)
               : "memory");
}

// As `load_box`, by a block of a pair; the bytes count towards the leader's barrier.
__device__ __forceinline__ void load_box_for_leader(void* to, const CUtensorMap& map, int x, int y, int z,
                                                    uint64_t& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.cta_group::2.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, "
      "%4}], [%5];" ::"r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(leader_address(&barrier))
      : "memory");
}

// What this thread wrote to shared memory becomes visible to the copy engine and the tensor cores.
__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- barriers among threads of a block, by number ---

__device__ __forceinline__ void sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// --- launches that overlap: nothing happens where a launch is no dependent, or has none ---

// The next launch may begin when every block of this one has said so or has ended: it comes where there is room.
__device__ __forceinline__ void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Until the launches before have ended, and what they wrote is there.
__device__ __forceinline__ void wait_for_launches() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// --- registers: a warpgroup gives some to others, or takes them ---

template <int count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

template <int count>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

// --- global memory, between thread blocks ---

__device__ __forceinline__ int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Count one more, after all that this thread knows to be written; after `limit` comes zero.
__device__ __forceinline__ void count_release(int* counter, int limit) {
  asm volatile("red.release.gpu.global.inc.u32 [%0], %1;" ::"l"(counter), "r"(limit) : "memory");
}

// The same, after nothing in particular.
__device__ __forceinline__ void count_relaxed(int* counter, int limit) {
  asm volatile("red.relaxed.gpu.global.inc.u32 [%0], %1;" ::"l"(counter), "r"(limit) : "memory");
}

// Count one more, and tell how many there were; after `limit` comes zero.
__device__ __forceinline__ int count(int* counter, int limit) {
  int before;
  asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(limit) : "memory");
  return before;
}

// 16 bytes of global memory into shared memory, past the first-level cache; not there before `wait_copies`.
__device__ __forceinline__ void copy_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// Until what this thread copied is there.
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// --- arithmetic ---

__device__ __forceinline__ float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// To a unit in the last place, without the steps and the branch of a division.
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ float2 unpack_f16(uint32_t packed) {
  float2 two;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
      : "=f"(two.x), "=f"(two.y)
      : "r"(packed));
  return two;
}

// Four e4m3 as bf16, exactly.
__device__ __forceinline__ void widen_e4m3(uint32_t four, uint32_t& first, uint32_t& second) {
  asm("{\n.reg .b16 a, b, c, d, low, high;\n.reg .b32 x, y;\n.reg .f32 e, f, g, h;\nmov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 x, low;\ncvt.rn.f16x2.e4m3x2 y, high;\nmov.b32 {a, b}, x;\nmov.b32 {c, d}, y;\n"
      "cvt.f32.f16 e, a;\ncvt.f32.f16 f, b;\ncvt.f32.f16 g, c;\ncvt.f32.f16 h, d;\n"
      "cvt.rn.bf16x2.f32 %0, f, e;\ncvt.rn.bf16x2.f32 %1, h, g;\n}"
      : "=r"(first), "=r"(second)
      : "r"(four));
}

// Four 8x8 matrices of 16-bit elements from registers to shared memory; lane i gives the address of row i % 8 of matrix
// i / 8.
__device__ __forceinline__ void store_matrices(void* row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}

}  // namespace ptx
