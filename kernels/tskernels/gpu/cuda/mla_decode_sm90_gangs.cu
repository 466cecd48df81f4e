// Latent attention over a paged cache (MLA, absorbed) for Hopper, where a sequence has more than 64 rows: the blocks of
// a gang read the same keys, and tensor cores are the limit, not memory.
//
// Rows, columns and tiles are those of mla_decode_sm90.cu, the order is another: there nothing is multiplied while a
// tile is weighed. Here the right warpgroup computes the scores of an odd tile while the left one weighs the even tile
// before, and weighs them while that tile is multiplied. So weights of two tiles are there at a time: they take the
// place of their tile's rotated columns, which only its scores need.
#include "half_tile_sm90.cuh"

namespace {

using namespace mla;

// Registers of a thread.
constexpr int computing_registers = 224, loading_registers = 56;

struct alignas(1024) Shared {
  union {
    uint8_t q[column_blocks][block_bytes];
    Turned turned;  // after the last product with q
  };
  union {
    uint8_t cache[stages][column_blocks][block_bytes];
    Joining joining;  // after the last item
  };
  float largest[2][rows_per_tile], sums[2][2][rows_per_tile];
  uint64_t q_full, q_empty, full[column_blocks][stages], empty[2][stages];  // of blocks of columns; of halves of tiles

  static constexpr bool weights_in_tile = true, ends_cleared = false;
  __device__ uint8_t* weights(int turn) { return cache[turn % stages][column_blocks - 1]; }
  __device__ void wait_for(int turn, int block) { ptx::wait(full[block][turn % stages], turn / stages % 2); }
};
static_assert(sizeof(Shared) <= 232448);

// Which columns a warp loads: those of a warpgroup's values, or the rotated ones.
enum Part { left, right, rotated_part, parts };

// One warp: a part of the tiles of all items into stages in turn, a block of columns each lane. The blocks of a gang
// each fetch a share of the next tile into the second-level cache: there is no room here to have loads under way for as
// long as memory takes. Launches before this one may still write what is fetched: they write to that cache.
__device__ __forceinline__ void load_part(Shared& shared, const CUtensorMap& map, const Parameters& p, int part) {
  const Range range = own_items(p.work);
  const int lane = threadIdx.x % 32, box = min(p.page_size & -p.page_size, tokens_per_tile),
            boxes = tokens_per_tile / box;
  const int block = part * left_blocks + lane, end = min((part + 1) * left_blocks, column_blocks);
  int turn = 0;
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    const int* table = p.tables + static_cast<size_t>(item.sequence) * p.table_columns;
    const int last = min(item.last_tile * tokens_per_tile, item.length);
    const int gang = ((item.length - item.cached) * p.heads + rows_per_tile - 1) / rows_per_tile;
    const bool fetches = gang > 1 && block < end && block % gang == item.offset / rows_per_tile;
    int row = 0;  // of the cache, of the box that is this lane's among the next 32
    for (int tile = item.first_tile, next = 0; tile < item.last_tile; ++tile, ++turn, next += boxes) {
      const auto look_up = [&](int token) {
        row = token < last ? __ldg(table + token / p.page_size) * p.page_size + token % p.page_size : 0;
      };
      if (next % 32 == 0) look_up(tile * tokens_per_tile + lane * box);
      const int present = min(boxes, (last - tile * tokens_per_tile + box - 1) / box), stage = turn % stages;
      if ((tile + 1) * tokens_per_tile > item.cached) ptx::wait_for_launches();  // tokens of this step
      if (block < end) {
        for (int half = 0; half < 2; ++half)  // weights were where the rotated columns come; either half may read them
          if (part == half || part == rotated_part) ptx::wait(shared.empty[half][stage], turn / stages % 2 ^ 1);
        ptx::arrive_and_expect(shared.full[block][stage], present * box * 128);
      }
      __syncwarp();
#pragma unroll 1
      for (int b = 0; b < present; ++b) {
        if (b == 32) look_up(tile * tokens_per_tile + 32 + lane);  // of 64, where each token is a box
        const int from = __shfl_sync(~0u, row, (next + b) % 32);
        if (block < end)
          ptx::load_box(shared.cache[stage][block] + b * box * 128, map, 0, from, block, shared.full[block][stage]);
      }
      if ((next + boxes) % 32 == 0) continue;  // the rows after are not known yet
#pragma unroll 1
      for (int b = 0; b < boxes; ++b) {
        const int from = __shfl_sync(~0u, row, (next + boxes + b) % 32);
        if (fetches && (tile + 1) * tokens_per_tile + b * box < last) ptx::prefetch_box(map, 0, from, block);
      }
    }
  }
}

struct Consumer : HalfTile<Shared> {
  using HalfTile::HalfTile;

  // All tiles of an item: tiles of an even index are the left warpgroup's, of an odd one the right's.
  __device__ void add_tiles(const Item& item, int turn) {
    const int count = item.last_tile - item.first_tile;
    if (side == 0)
      add_left(item, turn, count);
    else
      add_right(item, turn, count);
  }

  // By the left warpgroup. It queues the first products of its next scores behind the values that it is adding, and no
  // more before these are added and released: a queue that is full is waited for.
  __device__ void add_left(const Item& item, int turn, int count) {
    if (count == 0) return;
    begin_scores(turn);
    end_scores<0>();
    for (int even = 0, odd = 1, next = 2;; even += 2, odd += 2, next += 2) {
      softmax(item, item.first_tile + even);
      publish(item, turn + even, even);
      add_own(turn + even);
      end_values<0>(turn + even);
      if (odd == count) break;
      add_other(turn + odd, odd);
      if (next >= count) {
        end_values<0>(turn + odd);
        break;
      }
      begin_scores<0, 1>(turn + next);
      end_values<1>(turn + odd);
      begin_scores<1>(turn + next);
      end_scores<0>();
    }
  }

  // By the right one. What it adds of the other's weights follows its own scores, and is under way while it weighs
  // them.
  __device__ void add_right(const Item& item, int turn, int count) {
    for (int even = 0, odd = 1; even < count; even += 2, odd += 2) {
      if (odd < count) {
        begin_scores(turn + odd);
        add_other(turn + even, even);
        end_scores<1>();
        softmax(item, item.first_tile + odd);
        publish(item, turn + odd, odd);
        end_values<0>(turn + even);
        add_own(turn + odd);
        end_values<0>(turn + odd);
      } else {
        add_other(turn + even, even);
        end_values<0>(turn + even);
      }
    }
  }
};

}  // namespace

// As mla_decode of mla_decode_sm90.cu, but for one map of the cache, with boxes of one block of columns.
extern "C" __global__ void __launch_bounds__(384, 1)
    mla_decode_gangs(const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap rotated_queries,
                     const __grid_constant__ CUtensorMap cache, const int* work, const int* tables, __nv_bfloat16* out,
                     float* logarithms, __half* partials, float2* partial_half_rows, int* counters, int table_columns,
                     int page_size, int heads, float scale) {
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
    ptx::prefetch(cache);
    ptx::init_barrier(shared.q_full, 1);
    ptx::init_barrier(shared.q_empty, 8);
    for (int stage = 0; stage < stages; ++stage) {
      for (int block = 0; block < column_blocks; ++block) ptx::init_barrier(shared.full[block][stage], 1);
      for (int half = 0; half < 2; ++half) ptx::init_barrier(shared.empty[half][stage], 4);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  const int group = __shfl_sync(~0u, threadIdx.x / warpgroup, 0);
  if (group < 2) {
    ptx::take_registers<computing_registers>();
    ptx::wait_for_launches();
    consume<Consumer>(shared, p, group, [](const Item&, int) {});
  } else {
    ptx::give_registers<loading_registers>();
    const int warp = threadIdx.x / 32 % 4;
    if (warp < parts) load_part(shared, cache, p, warp);
    ptx::wait_for_launches();
    if (warp == parts && threadIdx.x % 32 == 0)
      load_queries(shared.q, shared.q_full, shared.q_empty, queries, rotated_queries, p);
  }
}
