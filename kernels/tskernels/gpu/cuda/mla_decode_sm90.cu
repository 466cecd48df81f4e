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
#include "half_tile_sm90.cuh"

namespace {

using namespace mla;

#ifndef FP8_CACHE
#define FP8_CACHE 0
#endif
constexpr bool fp8_cache = FP8_CACHE;
// Registers of a thread.
constexpr int computing_registers = fp8_cache ? 200 : 232, moving_registers = fp8_cache ? loading_registers : 40;

struct alignas(1024) Shared {
  union {
    uint8_t q[column_blocks][block_bytes];
    Turned turned;  // after the last product with q
  };
  union {
    uint8_t cache[stages][column_blocks][block_bytes];
    Joining joining;  // after the last item
  };
  uint8_t tile_weights[block_bytes];
  float largest[2][rows_per_tile], sums[2][2][rows_per_tile];
  uint64_t q_full, q_empty, full[2][stages], empty[2][stages];  // of halves of tiles

  static constexpr bool weights_in_tile = false, ends_cleared = fp8_cache;
  __device__ uint8_t* weights(int) { return tile_weights; }
  __device__ void wait_for(int turn, int block) {
    if (block == 0 || block == left_blocks) ptx::wait(full[block / left_blocks][turn % stages], turn / stages % 2);
  }
};
static_assert(sizeof(Shared) <= 232448);

struct Consumer : HalfTile<Shared> {
  using HalfTile::HalfTile;

  // All tiles of an item: tiles of an even index are the left warpgroup's, of an odd one the right's.
  __device__ void add_tiles(const Item& item, int turn) {
    const int count = item.last_tile - item.first_tile;
    for (int index = 0; index < count; ++index) {
      if (index % 2 == side) {
        begin_scores(turn + index);
        end_scores<0>();
        softmax(item, item.first_tile + index);
        publish(item, turn + index, index);
        add_own(turn + index);
      } else {
        add_other(turn + index, index);
      }
      end_values<0>(turn + index);
    }
  }
};

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
    consume<Consumer>(shared, p, group, [&](const Item& item, int turn) {
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
