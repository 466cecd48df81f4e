// Latent attention over a paged cache (MLA, absorbed) for Hopper: tensor cores (wgmma), copy engine (TMA), persistent
// thread blocks.
//
// A block has 64 rows of queries in shared memory and two tiles of 64 tokens of the cache, 576 columns each, which are
// keys as a whole and values by their first 512 columns. Two warpgroups hold the result, 256 columns each, in
// registers. They take turns with the scores: of one tile the left warpgroup computes scores and weights, of the next
// the right one; both multiply all weights with their half of the values. A third warpgroup loads. Each half of a tile
// is loaded again as soon as the warpgroup that alone reads it as values is done with it. With -DFP8_CACHE=1 the cache
// is of e4m3, which the third warpgroup widens.
#include "fp8_tiles.cuh"
#include "join_splits.cuh"
#include "wgmma.cuh"

namespace {

using namespace mla;

#ifndef FP8_CACHE
#define FP8_CACHE 0
#endif
constexpr bool fp8_cache = FP8_CACHE;
// Registers of a thread.
constexpr int computing_registers = fp8_cache ? 200 : 232, moving_registers = fp8_cache ? loading_registers : 40;

constexpr int warpgroup = 128, consumers = 2 * warpgroup;
constexpr int stages = 2;
constexpr int left_blocks = 4;  // of 64 columns; five more, with the rotated ones, are the right half

enum Barrier { weights_even = 1, weights_odd, item_done, side_left, side_right };

// Where the result is turned from the order of registers to that of rows, as it is written; rows are set apart for the
// banks.
using Turned = uint4[rows_per_tile][row_octets + 1];

struct alignas(1024) Shared {
  union {
    uint8_t q[column_blocks][block_bytes];
    Turned turned;  // after the last product with q
  };
  union {
    uint8_t cache[stages][column_blocks][block_bytes];
    Joining joining;  // after the last item
  };
  uint8_t weights[block_bytes];
  float largest[2][rows_per_tile];                              // of the tile in turn, even and odd
  float sums[2][2][rows_per_tile];                              // of items in turn, left and right
  uint64_t q_full, q_empty, full[2][stages], empty[2][stages];  // of halves of tiles
};
static_assert(sizeof(Shared) <= 232448);

// --- computing: side 0 is the warpgroup of the left columns, 1 of the right ones ---

struct Consumer {
  Shared& shared;
  const Parameters& p;
  const int side;
  float out[128];    // 64 rows of 256 columns
  float scores[32];  // 64 rows of 64 tokens
  uint32_t weights[16];
  float largest[2], sums[2];  // of this thread's two rows; sums over what this thread weighed

  __device__ Consumer(Shared& shared, const Parameters& p, int side) : shared(shared), p(p), side(side) {}

  __device__ int warp() const { return threadIdx.x / 32 % 4; }
  __device__ int lane() const { return threadIdx.x % 32; }
  __device__ int row(int which) const { return warp() * 16 + which * 8 + lane() / 4; }

  // Scores of the tile of this turn.
  __device__ void compute_scores(int turn) {
    const int stage = turn % stages, parity = turn / stages % 2;
    wgmma::pin(scores);
    wgmma::fence();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ptx::wait(shared.full[half][stage], parity);
      const int first = half * left_blocks, end = half ? column_blocks : left_blocks;
#pragma unroll
      for (int block = first; block < end; ++block)
#pragma unroll
        for (int step = 0; step < 4; ++step)
          wgmma::multiply_n64(scores, wgmma::descriptor(ptx::shared_address(shared.q[block]) + step * 32, 0),
                              wgmma::descriptor(ptx::shared_address(shared.cache[stage][block]) + step * 32, 0),
                              block + step > 0);
    }
    wgmma::commit();
    wgmma::wait<0>();
    wgmma::pin(scores);
  }

  // From scores to weights. Rows see keys before cached + (offset + row) / heads + 1.
  __device__ void softmax(const Item& item, int tile) {
    const int end = (tile + 1) * tokens_per_tile;
    if (end > item.cached + item.offset / p.heads + 1) {
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const int seen =
            min(item.cached + (item.offset + row(which)) / p.heads + 1, item.length) - tile * tokens_per_tile;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          const int column = i / 2 * 8 + lane() % 4 * 2 + i % 2;
          if (column >= seen) scores[i / 2 * 4 + which * 2 + i % 2] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      float most = scores[which * 2];
#pragma unroll
      for (int i = 1; i < 16; ++i) most = fmaxf(most, scores[i / 2 * 4 + which * 2 + i % 2]);
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      most = fmaxf(most * p.scale, largest[which]);
      const float base = most == -INFINITY ? 0 : most;
      sums[which] *= ptx::exp2(largest[which] - base);
#pragma unroll
      for (int i = 0; i < 16; i += 2) {
        const int at = i / 2 * 4 + which * 2;
        const float a = ptx::exp2(fmaf(scores[at], p.scale, -base)),
                    b = ptx::exp2(fmaf(scores[at + 1], p.scale, -base));
        sums[which] += a + b;
        weights[i + which] = ptx::pack_bf16(a, b);
      }
      factors[which] = ptx::exp2(largest[which] - base);
      largest[which] = most;
    }
  }
  float factors[2];  // by which what was summed up so far shrinks

  // Weights and new largest scores for the other warpgroup; rows of the tile past the end of the sequence become zeros:
  // they weigh nothing, but nothing times what was left in the cache may be no number. Who widens has done that.
  __device__ void publish(const Item& item, int turn, int index) {
    const int matrix = lane() / 8, at = warp() * 16 + matrix % 2 * 8 + lane() % 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int chunk = i * 2 + matrix / 2;
      ptx::store_matrices(shared.weights + at * 128 + (chunk ^ at % 8) * 16, weights[i * 4], weights[i * 4 + 1],
                          weights[i * 4 + 2], weights[i * 4 + 3]);
    }
    if (lane() % 4 == 0)
      for (int which = 0; which < 2; ++which) shared.largest[index % 2][row(which)] = largest[which];
    const int present = item.length - (item.first_tile + index) * tokens_per_tile;
    if (!fp8_cache && present < tokens_per_tile) {
      ptx::sync(side ? side_right : side_left, warpgroup);  // the scores of all its rows are computed
#pragma unroll 1
      for (int block = 0; block < latent / 64; ++block)
#pragma unroll 1
        for (int byte = present * 128 + threadIdx.x % warpgroup * 16; byte < block_bytes; byte += warpgroup * 16)
          *reinterpret_cast<int4*>(shared.cache[turn % stages][block] + byte) = int4{};
      ptx::fence_async_shared();
      ptx::sync(side ? side_right : side_left, warpgroup);
    }
    ptx::fence_async_shared();
    ptx::arrive(index % 2 ? weights_odd : weights_even, consumers);
  }

  __device__ void shrink() {
    if (!__any_sync(~0u, factors[0] != 1 || factors[1] != 1)) return;
#pragma unroll
    for (int i = 0; i < 128; ++i) out[i] *= factors[i / 2 % 2];
  }

  __device__ uint64_t values(int turn, int step) const {
    return wgmma::descriptor(ptx::shared_address(shared.cache[turn % stages][side * left_blocks]) + step * 2048,
                             block_bytes);
  }

  // Add this warpgroup's own weights times its half of the values.
  __device__ void add_own(int turn) {
    shrink();
    wgmma::pin(out);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      wgmma::multiply_n256(out, *reinterpret_cast<uint32_t(*)[4]>(weights + step * 4), values(turn, step), true);
    wgmma::commit();
  }

  // Begin to add the other's.
  __device__ void add_other(int turn, int index) {
    ptx::sync(index % 2 ? weights_odd : weights_even, consumers);
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const float most = shared.largest[index % 2][row(which)];
      factors[which] = ptx::exp2(largest[which] - (most == -INFINITY ? 0 : most));
      sums[which] *= factors[which];
      largest[which] = most;
    }
    shrink();
    wgmma::pin(out);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      wgmma::multiply_n256(out, wgmma::descriptor(ptx::shared_address(shared.weights) + step * 32, 0),
                           values(turn, step), true);
    wgmma::commit();
  }

  __device__ void release(int turn) {
    wgmma::wait<0>();
    wgmma::pin(out);
    if (lane() == 0) ptx::arrive(shared.empty[side][turn % stages]);
  }

  // All tiles of an item: tiles of an even index are the left warpgroup's, of an odd one the right's.
  __device__ void run(const Item& item, int turn) {
    const int count = item.last_tile - item.first_tile;
    for (int i = 0; i < 128; ++i) out[i] = 0;
    for (int which = 0; which < 2; ++which) largest[which] = -INFINITY, sums[which] = 0;
    for (int index = 0; index < count; ++index) {
      if (index % 2 == side) {
        compute_scores(turn + index);
        softmax(item, item.first_tile + index);
        publish(item, turn + index, index);
        add_own(turn + index);
      } else {
        add_other(turn + index, index);
      }
      release(turn + index);
    }
  }

  // The largest magnitude of this warpgroup's half of a row.
  __device__ float largest_magnitude(int which) const {
    float most = 0;
#pragma unroll
    for (int i = 0; i < 128; i += 4)
      most = fmaxf(most, fmaxf(fabsf(out[i + which * 2]), fabsf(out[i + which * 2 + 1])));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    return fmaxf(most, __shfl_xor_sync(~0u, most, 2));
  }

  // This warpgroup's half of the result, times a factor for each row.
  __device__ void turn_rows(const float (&factor)[2]) {
    const int matrix = lane() / 8, at = warp() * 16 + matrix % 2 * 8 + lane() % 8;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      uint32_t packed[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        packed[j] = ptx::pack_bf16(out[i * 8 + j * 2] * factor[j % 2], out[i * 8 + j * 2 + 1] * factor[j % 2]);
      ptx::store_matrices(&shared.turned[at][side * half_octets + i * 2 + matrix / 2], packed[0], packed[1], packed[2],
                          packed[3]);
    }
  }

  // This warpgroup's half of a partial result as it lies in registers: of 32 columns each of four threads has four
  // pairs.
  __device__ void write_part(uint4* to, const float (&factor)[2], int rows) {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      if (row(which) >= rows) continue;
      uint4* of_row = to + row(which) * row_octets + side * half_octets + lane() % 4;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        uint32_t packed[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = (i * 4 + j) * 4 + which * 2;
          packed[j] = ptx::pack_f16(out[at] * factor[which], out[at + 1] * factor[which]);
        }
        __stcg(of_row + i * 4, uint4{packed[0], packed[1], packed[2], packed[3]});
      }
    }
  }

  // Divide by the sums of both warpgroups, and write the result, or a partial one.
  __device__ void finish(const Item& item, int parity, bool more) {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      sums[which] += __shfl_xor_sync(~0u, sums[which], 1);
      sums[which] += __shfl_xor_sync(~0u, sums[which], 2);
      if (lane() % 4 == 0) shared.sums[parity][side][row(which)] = sums[which];
    }
    const bool whole = item.splits == 1;
    const int place = item.partial + item.split;
    float factor[2], most[2] = {};  // of what is there before the other warpgroup is waited for
    if (!whole && warp() * 16 < item.rows)
      for (int which = 0; which < 2; ++which) most[which] = largest_magnitude(which);
    ptx::sync(item_done, consumers);
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const int at = row(which);
      const float sum = shared.sums[parity][0][at] + shared.sums[parity][1][at], inverse = sum > 0 ? ptx::reciprocal(sum) : 0;
      const float logarithm = largest[which] + __log2f(sum);
      const bool writes = lane() % 4 == 0 && at < item.rows;
      if (whole) {
        factor[which] = inverse;
        if (writes && side == 0 && p.output.logarithms) p.output.logarithms[item.first_row + at] = natural(logarithm);
      } else {
        factor[which] = to_unit(most[which]);
        if (writes)
          __stcg(p.partials.half_rows + (place * rows_per_tile + at) * 2 + side,
                 float2{logarithm, most[which] * inverse});
      }
    }
    if (whole) {
      if (warp() * 16 < item.rows) turn_rows(factor);
      ptx::sync(item_done, consumers);
      uint4* to = reinterpret_cast<uint4*>(p.output.out) + static_cast<size_t>(item.first_row) * row_octets;
#pragma unroll 4
      for (int i = threadIdx.x; i < item.rows * row_octets; i += consumers)
        __stcg(to + i, shared.turned[i / row_octets][i % row_octets]);
    } else {
      write_part(reinterpret_cast<uint4*>(p.partials.out) + static_cast<size_t>(place) * rows_per_tile * row_octets,
                 factor, item.rows);
    }
    if (more) {
      ptx::fence_async_shared();
      __syncwarp();
      if (lane() == 0) ptx::arrive(shared.q_empty);
    }
    if (!whole) {
      ptx::sync(item_done, consumers);
      if (threadIdx.x == 0) ptx::count_release(p.partials.counters + item.counter, counted(item));
    }
  }
};

// before(item, turn): called before each item.
template <class Before>
__device__ __forceinline__ void consume(Shared& shared, const Parameters& p, int side, const Before& before) {
  const Range range = own_items(p.work);
  int turn = 0;
  {
    Consumer consumer(shared, p, side);
    for (int i = range.begin; i < range.end; ++i) {
      const Item item = load_item(range.items, i);
      before(item, i - range.begin);
      ptx::wait(shared.q_full, (i - range.begin) % 2);
      consumer.run(item, turn);
      turn += item.last_tile - item.first_tile;
      consumer.finish(item, i % 2, i + 1 < range.end);
    }
  }
  // The tiles of queries and cache are read no more.
  ptx::sync(item_done, consumers);
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    if (item.splits > 1) combine<consumers>(item, p.partials, p.output, shared.joining, threadIdx.x, item_done);
  }
}

}  // namespace

// work: see Parameters; counters: i32, zeros, left as zeros; a launch has at most as many blocks as there are
// multiprocessors.
extern "C" __global__ void __launch_bounds__(384, 1)
    mla_decode(const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap rotated_queries,
#if FP8_CACHE
               const uint8_t* cache, int cache_row_bytes,
#else
               const __grid_constant__ CUtensorMap cache_left, const __grid_constant__ CUtensorMap cache_right,
#endif
               const int* work, const int* tables, __nv_bfloat16* out, float* logarithms, __half* partials,
               float2* partial_half_rows, int* counters, int table_columns, int page_size, int heads, float scale) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Parameters p{work,
                     tables,
                     table_columns,
                     page_size,
                     heads,
                     scale * 1.4426950408889634f,
                     {partials, partial_half_rows, counters},
                     {out, logarithms}};
  ptx::let_next_begin();
  if (threadIdx.x == 0) {
    ptx::prefetch(queries);
    ptx::prefetch(rotated_queries);
#if !FP8_CACHE
    ptx::prefetch(cache_left);
    ptx::prefetch(cache_right);
#endif
    ptx::init_barrier(shared.q_full, 1);
    ptx::init_barrier(shared.q_empty, 8);
    for (int stage = 0; stage < stages; ++stage)
      for (int half = 0; half < 2; ++half) {
        ptx::init_barrier(shared.full[half][stage], fp8_cache ? loading_warps : 1);
        ptx::init_barrier(shared.empty[half][stage], 4);
      }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  const int group = __shfl_sync(~0u, threadIdx.x / warpgroup, 0);
  if (group < 2) {
    ptx::take_registers<computing_registers>();
    ptx::wait_for_launches();
    consume(shared, p, group, [&](const Item& item, int turn) {
      if (!fp8_cache) return;  // else all who load are widening
      ptx::wait(shared.q_empty, turn % 2 ^ 1);
      if (threadIdx.x == 0) load_queries(shared.q, shared.q_full, queries, rotated_queries, item);
      __syncwarp();
    });
  } else {
    ptx::give_registers<moving_registers>();
#if FP8_CACHE
    ptx::wait_for_launches();
    load_fp8_tiles<stages, left_blocks>(shared.cache, shared.full, shared.empty, cache, cache_row_bytes, p);
#else
    const int warp = threadIdx.x / 32 % 4;
    if (warp == 0) load_tiles<stages>(shared.cache, shared.full[0], shared.empty[0], cache_left, p, 0, left_blocks);
    if (warp == 1)
      load_tiles<stages>(shared.cache, shared.full[1], shared.empty[1], cache_right, p, left_blocks, column_blocks);
    ptx::wait_for_launches();
    if (warp == 2 && threadIdx.x % 32 == 0)
      load_queries(shared.q, shared.q_full, shared.q_empty, queries, rotated_queries, p);
#endif
  }
}
