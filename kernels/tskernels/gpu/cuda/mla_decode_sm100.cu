// Latent attention over a paged cache (MLA, absorbed) for Blackwell: tensor cores (tcgen05), copy engine (TMA),
// persistent thread blocks.
//
// A block has 64 rows of queries in shared memory and two tiles of 64 tokens of the cache, which are keys as a whole
// and values by their first 512 columns. The result, 64 x 512, is in tensor memory: of 64 rows a product fills half of
// the lanes, so the left 256 columns lie in the lower lanes of each warp and the right ones in the upper lanes of the
// same columns. Scores lie likewise: 32 tokens below, 32 above. So a thread has one row, half of its scores and half of
// its result. One warp loads, one multiplies, four make scores into weights. With -DFP8_CACHE=1 the cache is of e4m3,
// and four more warps load and widen it.
//
// Never run on hardware: compiled, and emulated from its PTX.
#include "fp8_tiles.cuh"
#include "half_row.cuh"

namespace {

using namespace mla;

#ifndef FP8_CACHE
#define FP8_CACHE 0
#endif
constexpr bool fp8_cache = FP8_CACHE;
constexpr int stages = 2, workers = 128;
constexpr int columns = 512, scores_column = 256;  // of tensor memory: the result takes 0 to 255
constexpr int work_done = 1;                       // a named barrier

struct alignas(1024) Shared {
  uint8_t q[column_blocks][block_bytes];
  union {
    uint8_t cache[stages][column_blocks][block_bytes];
    Joining joining;  // after the last item
  };
  uint8_t weights[block_bytes];
  uint64_t q_full, q_empty, full[stages], empty[stages], scored, weighed, added;
  uint32_t tensor_memory;
};
static_assert(sizeof(Shared) <= 232448);

// One thread of a third: all products. A tile makes room for another before the next one's scores are begun, since
// memory is the limit.
__device__ __forceinline__ void multiply(Shared& shared, const Parameters& p) {
  constexpr uint32_t for_scores = tcgen05::instruction(64, 32, false), for_values = tcgen05::instruction(64, 256, true);
  const Range range = own_items(p.work);
  const uint32_t result = shared.tensor_memory, scores = result + scores_column;
  int turn = 0;
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    ptx::wait(shared.q_full, (i - range.begin) % 2);
    for (int tile = item.first_tile; tile < item.last_tile; ++tile, ++turn) {
      const int stage = turn % stages;
      ptx::wait(shared.full[stage], turn / stages % 2);
      tcgen05::fence_after_sync();
      for (int block = 0; block < column_blocks; ++block)
        for (int step = 0; step < 4; ++step)
          for (int half = 0; half < 2; ++half)
            tcgen05::multiply(
                scores + half * tcgen05::upper_lanes,
                tcgen05::descriptor(ptx::shared_address(shared.q[block]) + step * 32, 16),
                tcgen05::descriptor(ptx::shared_address(shared.cache[stage][block]) + half * 4096 + step * 32, 16),
                for_scores, block + step > 0);
      tcgen05::commit(shared.scored);
      ptx::wait(shared.weighed, turn % 2);
      tcgen05::fence_after_sync();
      for (int step = 0; step < 4; ++step)
        for (int half = 0; half < 2; ++half)
          tcgen05::multiply(
              result + half * tcgen05::upper_lanes,
              tcgen05::descriptor(ptx::shared_address(shared.weights) + step * 32, 16),
              tcgen05::descriptor(ptx::shared_address(shared.cache[stage][half * 4]) + step * 2048, block_bytes),
              for_values, tile > item.first_tile || step > 0);
      tcgen05::commit(shared.empty[stage]);
      tcgen05::commit(shared.added);
    }
  }
}

// The weights of a tile, made of its scores.
__device__ __forceinline__ void weigh(Shared& shared, HalfRow& mine, const Item& item, int tile, int turn) {
  const bool is_first = tile == item.first_tile;
  float scores[32];
  ptx::wait(shared.scored, turn % 2);
  tcgen05::fence_after_sync();
  tcgen05::load(scores, mine.result + scores_column);
  tcgen05::wait_loads();
  float most = mine.mask(scores, item, tile);
  most = fmaxf(most, __shfl_xor_sync(~0u, most, 16)) * mine.p.scale;

  if (!is_first) {  // weights are overwritten, and the result may be changed, when they were multiplied
    ptx::wait(shared.added, turn % 2 ^ 1);
    tcgen05::fence_after_sync();
  }
  const bool grows = mine.grows(most);
  if (__any_sync(~0u, grows)) mine.grow(grows, most, !is_first);
  mine.write_weights(scores, shared.weights);
  if (!fp8_cache)  // who widens has done that
    clear_past_end<latent / 64>(shared.cache[turn % stages], item.length - tile * tokens_per_tile);
  ptx::fence_async_shared();
  tcgen05::fence_before_sync();
  ptx::arrive(shared.weighed);
}

__device__ __forceinline__ void work(Shared& shared, const Parameters& p) {
  const Range range = own_items(p.work);
  HalfRow mine{p, shared.tensor_memory + tcgen05::warp_lanes(), static_cast<int>(threadIdx.x % 32 / 16),
               static_cast<int>(threadIdx.x / 32 * 16 + threadIdx.x % 16)};
  int turn = 0;
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    const bool any = item.first_tile < item.last_tile;
    mine.begin();
    for (int tile = item.first_tile; tile < item.last_tile; ++tile, ++turn) weigh(shared, mine, item, tile, turn);
    if (any) {
      ptx::wait(shared.added, turn % 2 ^ 1);
      tcgen05::fence_after_sync();
    }
    if (i + 1 < range.end) ptx::arrive(shared.q_empty);  // the products that read it are done
    mine.write(item, mine.sum + __shfl_xor_sync(~0u, mine.sum, 16), any);
    if (item.splits > 1) {
      ptx::sync(work_done, workers);
      if (threadIdx.x == 0) ptx::count_release(p.partials.counters + item.counter, counted(item));
    }
  }
  ptx::sync(work_done, workers);  // the tiles are read no more
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    if (item.splits > 1) combine<workers>(item, p.partials, p.output, shared.joining, threadIdx.x, work_done);
  }
}

}  // namespace

// As mla_decode of mla_decode_sm90.cu, but for one map of the cache.
extern "C" __global__ void __launch_bounds__(fp8_cache ? 384 : 256, 1)
    mla_decode(const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap rotated_queries,
#if FP8_CACHE
               const uint8_t* cache, int cache_row_bytes,
#else
               const __grid_constant__ CUtensorMap cache,
#endif
               const int* work_list, const int* tables, __nv_bfloat16* out, float* logarithms, __half* partials,
               float2* partial_half_rows, int* counters, int table_columns, int page_size, int heads, float scale) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Parameters p{work_list,
                     tables,
                     table_columns,
                     page_size,
                     heads,
                     scale * 1.4426950408889634f,
                     {partials, partial_half_rows, counters},
                     {out, logarithms}};
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    ptx::prefetch(queries);
    ptx::prefetch(rotated_queries);
#if !FP8_CACHE
    ptx::prefetch(cache);
#endif
    ptx::init_barrier(shared.q_full, 1);
    ptx::init_barrier(shared.q_empty, workers);
    for (int stage = 0; stage < stages; ++stage) {
      ptx::init_barrier(shared.full[stage], fp8_cache ? loading_warps : 1);
      ptx::init_barrier(shared.empty[stage], 1);
    }
    ptx::init_barrier(shared.scored, 1);
    ptx::init_barrier(shared.weighed, workers);
    ptx::init_barrier(shared.added, 1);
    ptx::fence_barrier_init();
  }
  if (warp == 4) tcgen05::allocate<columns>(shared.tensor_memory);
  tcgen05::fence_before_sync();
  __syncthreads();
  tcgen05::fence_after_sync();
  if (warp < 4) {
    work(shared, p);
#if FP8_CACHE
  } else if (warp >= 8) {
    ptx::give_registers<loading_registers>();
    load_fp8_tiles<stages, column_blocks>(shared.cache, &shared.full, &shared.empty, cache, cache_row_bytes, p);
#else
  } else if (warp == 4) {
    load_tiles<stages>(shared.cache, shared.full, shared.empty, cache, p, 0, column_blocks);
#endif
  } else if (warp == 5) {
    if (lane == 0) multiply(shared, p);
  } else if (warp == 6) {
    if (lane == 0) load_queries(shared.q, shared.q_full, shared.q_empty, queries, rotated_queries, p);
  }
  tcgen05::fence_before_sync();
  __syncthreads();
  tcgen05::fence_after_sync();
  if (warp == 4) tcgen05::release<columns>(shared.tensor_memory);
}
