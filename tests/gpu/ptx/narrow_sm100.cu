// A product with 64 rows on Blackwell (`.ws`).
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

struct alignas(1024) Shared {
    uint8_t a[16384], b[8192];
    uint64_t full, done;
    uint32_t tensor;
};

// out[64, 64] = a[64, 64] b[64, 64]^T in bf16: the columns from 32 on are in the lanes from 64 on.
extern "C" __global__ void __launch_bounds__(128, 1)
    narrow(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* out) {
    extern __shared__ __align__(1024) uint8_t memory[];
    Shared& s = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, warp = thread / 32;
    if (warp == 0) asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], 32;" ::"r"(address(&s.tensor)) : "memory");
    if (thread == 0) {
        init(s.full, 1), init(s.done, 1);
        fence_init();
    }
    __syncthreads();
    const uint32_t sums = s.tensor;
    if (thread == 0) {
        expect(s.full, 16384);
        load_tile(s.a, a, 0, 0, s.full);
        load_tile(s.b, b, 0, 0, s.full);
        wait(s.full, 0);
        const uint32_t how = 1 << 4 | 1 << 7 | 1 << 10 | 64 / 8 << 17 | 64 / 16 << 24;
#pragma unroll
        for (int k = 0; k < 4; k++)
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\ntcgen05.mma.ws.cta_group::1.kind::f16 [%0], %1, %2, %3, p;\n}" ::"r"(sums), "l"(describe(address(s.a) + k * 32)),
                         "l"(describe(address(s.b) + k * 32)), "r"(how), "r"(k)
                         : "memory");
        asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(address(&s.done)) : "memory");
    }
    wait(s.done, 0);
    fence_after();
    uint32_t r[32];
    load_tensor<0>(r, sums + (warp << 21));
    wait_loads();
    for (int j = 0; j < 32; j++) out[thread % 64 * 64 + thread / 64 * 32 + j] = __uint_as_float(r[j]);
    fence_before();
    __syncthreads();
    if (warp == 0) asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, 32;" ::"r"(sums));
}
