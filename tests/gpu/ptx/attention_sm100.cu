// 128 queries over tiles of 64 keys that are values, too, for Blackwell: a warp loads, one issues the products (tcgen05), four take scores
// from tensor memory, give weights back through shared memory, and write the result with TMA.
#include "primitives.cuh"

// clang-format off: lists of registers
template <int offset>
__device__ __forceinline__ void load_tensor(uint32_t (&r)[32], uint32_t at) {
    asm volatile("tcgen05.ld.sync.aligned.32x32b.x32.b32 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, [%32];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7]), "=r"(r[8]), "=r"(r[9]), "=r"(r[10]), "=r"(r[11]), "=r"(r[12]), "=r"(r[13]), "=r"(r[14]), "=r"(r[15]), "=r"(r[16]), "=r"(r[17]), "=r"(r[18]), "=r"(r[19]), "=r"(r[20]), "=r"(r[21]), "=r"(r[22]), "=r"(r[23]), "=r"(r[24]), "=r"(r[25]), "=r"(r[26]), "=r"(r[27]), "=r"(r[28]), "=r"(r[29]), "=r"(r[30]), "=r"(r[31]) : "r"(at + offset));
}
// clang-format on
__device__ __forceinline__ void wait_loads() { asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void fence_before() { asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory"); }
__device__ __forceinline__ void fence_after() { asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory"); }
// 128-byte swizzle; K-major, or with `across` bytes between blocks of 64 columns.
__device__ __forceinline__ uint64_t describe(uint32_t at) {
    return (at & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 46 | 2ull << 61;
}

__device__ __forceinline__ void commit(uint64_t& barrier) {
    asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(address(&barrier)) : "memory");
}
__device__ __forceinline__ void multiply(uint32_t d, uint64_t a, uint64_t b, uint32_t how, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\ntcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, p;\n}" ::"r"(d), "l"(a), "l"(b), "r"(how),
                 "r"(accumulate)
                 : "memory");
}

struct alignas(1024) Shared {
    uint8_t q[16384], weights[16384], kv[2][8192];
    uint64_t q_full, full[2], empty[2], scores, weighed, done;
    uint32_t tensor;
};

extern "C" __global__ void __launch_bounds__(192, 1) attention(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap kv,
                                                               const __grid_constant__ CUtensorMap out, int tiles, float scale) {
    extern __shared__ __align__(1024) uint8_t memory[];
    Shared& s = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    if (warp == 5) {
        asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], 128;" ::"r"(address(&s.tensor)) : "memory");
        asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
    }
    if (thread == 0) {
        init(s.q_full, 1);
        for (int i = 0; i < 2; i++) init(s.full[i], 1), init(s.empty[i], 1);
        init(s.scores, 1), init(s.weighed, 128), init(s.done, 1);
        fence_init();
    }
    __syncthreads();
    const uint32_t scores = s.tensor, sums = scores + 64;
    if (warp == 4 && lane == 0) {
        expect(s.q_full, 16384);
        load_tile(s.q, q, 0, blockIdx.x * 128, s.q_full);
#pragma unroll 1
        for (int i = 0; i < tiles; i++) {
            wait(s.empty[i % 2], i / 2 % 2 ^ 1);
            expect(s.full[i % 2], 8192);
            load_tile(s.kv[i % 2], kv, 0, i * 64, s.full[i % 2]);
        }
    } else if (warp == 5 && lane == 0) {
        const uint32_t how = 1 << 4 | 1 << 7 | 1 << 10 | 64 / 8 << 17 | 128 / 16 << 24, turned = 1 << 16;
        wait(s.q_full, 0);
#pragma unroll 1
        for (int i = 0; i < tiles; i++) {
            wait(s.full[i % 2], i / 2 % 2);
            const uint32_t at = address(s.kv[i % 2]);
#pragma unroll
            for (int k = 0; k < 4; k++) multiply(scores, describe(address(s.q) + k * 32), describe(at + k * 32), how, k);
            commit(s.scores);
            wait(s.weighed, i % 2);
            fence_after();
#pragma unroll
            for (int k = 0; k < 4; k++) multiply(sums, describe(address(s.weights) + k * 32), describe(at + k * 2048), how | turned, i + k);
            commit(s.empty[i % 2]);
        }
        commit(s.done);
    } else if (warp < 4) {
        const uint32_t row = warp << 21, swizzle = thread % 8;
        uint32_t r[32];
        float total = 0;
#pragma unroll 1
        for (int i = 0; i < tiles; i++) {
            wait(s.scores, i % 2);
            fence_after();
            uint32_t packed[32];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (half)
                    load_tensor<32>(r, scores + row);
                else
                    load_tensor<0>(r, scores + row);
                wait_loads();
#pragma unroll
                for (int j = 0; j < 32; j += 2) {
                    const float a = power_of_2(__uint_as_float(r[j]) * scale), b = power_of_2(__uint_as_float(r[j + 1]) * scale);
                    total += a + b;
                    packed[half * 16 + j / 2] = pack(a, b);
                }
            }
#pragma unroll
            for (int c = 0; c < 8; c++)  // the products that read what was here came before those that gave these scores
                *reinterpret_cast<uint4*>(s.weights + thread * 128 + (c ^ swizzle) * 16) = {packed[c * 4], packed[c * 4 + 1], packed[c * 4 + 2], packed[c * 4 + 3]};
            fence_async();
            fence_before();
            arrive(s.weighed);
        }
        wait(s.done, 0);
        fence_after();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (half)
                load_tensor<32>(r, sums + row);
            else
                load_tensor<0>(r, sums + row);
            wait_loads();
#pragma unroll
            for (int c = 0; c < 4; c++) {
                uint4 four;
                uint32_t* words = &four.x;
                for (int j = 0; j < 4; j++) words[j] = pack(__uint_as_float(r[c * 8 + j * 2]) / total, __uint_as_float(r[c * 8 + j * 2 + 1]) / total);
                *reinterpret_cast<uint4*>(s.weights + thread * 128 + ((half * 4 + c) ^ swizzle) * 16) = four;
            }
        }
        fence_async();
        asm volatile("bar.sync 1, 128;" ::: "memory");
        if (thread == 0) {
            asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&out), "r"(0), "r"(static_cast<int>(blockIdx.x) * 128),
                         "r"(address(s.weights))
                         : "memory");
            asm volatile("cp.async.bulk.commit_group;" ::: "memory");
            asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
        }
        fence_before();
    }
    __syncthreads();
    if (warp == 5) asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, 128;" ::"r"(scores));
}
