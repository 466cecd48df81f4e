// 64 queries over tiles of 64 keys that are values, too: a warp loads through a ring of two, a warpgroup multiplies (wgmma).
#include "primitives.cuh"

// clang-format off: lists of registers
// d[64, 64] (+)= a[64, 16] b[64, 16]^T
__device__ __forceinline__ void multiply(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]) : "l"(a), "l"(b), "r"(accumulate));
}
// d[64, 64] += a[64, 16] b[16, 64]
__device__ __forceinline__ void multiply_values(float (&d)[32], const uint32_t* a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// clang-format on
__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void finish() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
__device__ __forceinline__ void pin(float (&r)[32]) {
#pragma unroll
    for (int i = 0; i < 32; i++) asm volatile("" : "+f"(r[i])::"memory");
}
__device__ __forceinline__ uint64_t describe(uint32_t at) { return (at & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62; }

struct alignas(1024) Shared {
    uint8_t q[8192], kv[2][8192];
    uint64_t q_full, full[2], empty[2];
};

extern "C" __global__ void __launch_bounds__(160, 1)
    attention(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap kv, float* out, int tiles, float scale) {
    extern __shared__ __align__(1024) uint8_t memory[];
    Shared& s = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, lane = thread % 32;
    if (thread == 0) {
        init(s.q_full, 1);
        for (int i = 0; i < 2; i++) init(s.full[i], 1), init(s.empty[i], 4);
        fence_init();
    }
    __syncthreads();
    if (thread >= 128) {
        if (lane) return;
        expect(s.q_full, 8192);
        load_tile(s.q, q, 0, blockIdx.x * 64, s.q_full);
#pragma unroll 1
        for (int i = 0; i < tiles; i++) {
            wait(s.empty[i % 2], i / 2 % 2 ^ 1);
            expect(s.full[i % 2], 8192);
            load_tile(s.kv[i % 2], kv, 0, i * 64, s.full[i % 2]);
        }
        return;
    }
    float sum[32] = {}, total[2] = {};
    wait(s.q_full, 0);
#pragma unroll 1
    for (int i = 0; i < tiles; i++) {
        const uint32_t at = address(s.kv[i % 2]);
        wait(s.full[i % 2], i / 2 % 2);
        float scores[32];
        for (int j = 0; j < 32; j++) scores[j] = __uint_as_float(0x7fc00000);  // the first product does not add to it
        pin(scores);
        fence();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply(scores, describe(address(s.q) + k * 32), describe(at + k * 32), k);
        finish();
        pin(scores);
        uint32_t weights[16];
#pragma unroll
        for (int j = 0; j < 32; j += 2) {
            const float a = power_of_2(scores[j] * scale), b = power_of_2(scores[j + 1] * scale);
            total[j / 2 % 2] += a + b;
            weights[j / 2] = pack(a, b);
        }
        pin(sum);
        fence();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply_values(sum, weights + k * 4, describe(at + k * 2048));
        finish();
        pin(sum);
        if (lane == 0) arrive(s.empty[i % 2]);
    }
    for (int j = 0; j < 2; j++)
        for (int step = 1; step <= 2; step++) total[j] += __shfl_xor_sync(~0u, total[j], step);
    const int row = blockIdx.x * 64 + thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < 32; j++) out[(row + j / 2 % 2 * 8) * 64 + j / 4 * 8 + lane % 4 * 2 + j % 2] = sum[j] / total[j / 2 % 2];
}
