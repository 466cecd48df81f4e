// Latent attention over a paged cache (MLA, absorbed) for Blackwell, 128 rows at a time: pairs of thread blocks, whose
// tensor cores (tcgen05, cta_group::2) make one product.
//
// Of a pair each block has 64 of the 128 rows of queries, of weights and of the result. The other operand is shared:
// for the scores a block has half of a tile's 64 tokens, as keys; for the result half of the 512 columns, of all its
// tokens, as values. An operand lies at the same addresses in both blocks, so what is key and value in one block can
// not be both at one place: keys and values are loaded apart, 36,864 and 32,768 bytes, less together than one whole
// tile. A product of 128 rows in two blocks fills all 128 lanes of each: 64 rows with the left half of the columns in
// the lower lanes, with the right half in the upper ones. So the result takes 256 columns of 512, and there is room for
// the scores of two tiles.
//
// The leader (block 0) multiplies for both. In each block a warp loads keys, one values, and four make scores into
// weights, while the scores of the next tile are being made.
//
// Never run on hardware: compiled, and emulated from its PTX.
#include "half_row.cuh"

namespace {

using namespace mla;

constexpr int stages = 2, workers = 128, worker_warps = 2 * workers / 32;  // of both blocks
constexpr int columns = 512, scores_column = 256;  // of tensor memory: the result takes 0 to 255
constexpr int half_tokens = tokens_per_tile / 2, key_block_bytes = block_bytes / 2, value_blocks = latent / 64 / 2;
constexpr int work_done = 1, halves_met = 2;  // named barriers; of `halves_met` there are two

struct alignas(1024) Shared {
  uint8_t q[column_blocks][block_bytes];
  union {
    struct {
      uint8_t keys[stages][column_blocks][key_block_bytes];
      uint8_t values[stages][value_blocks][block_bytes];
    };
    Joining joining;  // after the last item
  };
  uint8_t weights[stages][block_bytes];
  float exchanged[2][2][rows_per_tile];
  // The leader's: keys and queries are there, and weights are, in both blocks.
  uint64_t q_full, keys_full[stages], weighed[stages];
  // Each block's: its values are there; products of the pair are done: those that read the queries, those that made
  // scores of keys, those that added values.
  uint64_t values_full[stages], q_empty, scored[stages], added[stages];
  uint32_t tensor_memory;
};
static_assert(sizeof(Shared) <= 232448);

__device__ __forceinline__ bool is_empty(const Item& item) { return item.first_tile >= item.last_tile; }

// Boxes of a part of a tile, `part` tokens of it (32 or 64): as long as pages and the part allow.
template <int part>
__device__ __forceinline__ int box_rows(int page_size) {
  return min(page_size & -page_size, part);
}

// Tokens of a part that boxes bring where the sequence has `left` more from its first on: whole boxes, of pages that
// there are.
template <int part>
__device__ __forceinline__ int rows_brought(int left, int box) {
  return min(max((left + box - 1) / box * box, 0), part);
}

// One warp: a part of each tile of all items, `part` tokens from `offset` on, `blocks` blocks of columns. Before a tile
// one lane calls begin(turn, tokens of the sequence from the tile's first on), and then lanes call load(turn, block,
// token of the part, row of the cache) for each box. A part is one box where pages have whole ones, so the map's boxes
// have all these blocks; of smaller pages each block is one, and pages past the end are left out. How many tiles there
// were.
template <int part, class Begin, class Load>
__device__ __forceinline__ int load_parts(const Parameters& p, int offset, int blocks, Begin begin, Load load) {
  const Range range = own_items(p.work);
  const int lane = threadIdx.x % 32, box = box_rows<part>(p.page_size), boxes = part / box;
  const int depth = boxes == 1 ? blocks : 1;
  int turn = 0;
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    const int* table = p.tables + static_cast<size_t>(item.sequence) * p.table_columns;
    const int last = min(item.last_tile * tokens_per_tile, item.length);
    int row = 0;  // of the cache, of the box that is this lane's among the next 32
    for (int tile = item.first_tile, next = 0; tile < item.last_tile; ++tile, ++turn, next += boxes) {
      const auto look_up = [&](int number) {
        const int token = (tile + number / boxes) * tokens_per_tile + offset + number % boxes * box;
        row = token < last ? __ldg(table + token / p.page_size) * p.page_size + token % p.page_size : 0;
      };
      if (next % 32 == 0) look_up(lane);
      const int left = last - tile * tokens_per_tile, present = rows_brought<part>(left - offset, box) / box;
      if (lane == 0) begin(turn, left);
      __syncwarp();
#pragma unroll 1
      for (int b = 0; b < present; ++b) {
        if (b == 32) look_up(32 + lane);  // of 64, where each token is a box
        const int from = __shfl_sync(~0u, row, (next + b) % 32), block = lane * depth;
        if (block < blocks) load(turn, block, b * box, from);
      }
    }
  }
  return turn;
}

// One warp: half of the tokens of each tile.
__device__ __forceinline__ void load_keys(Shared& shared, const CUtensorMap& map, const Parameters& p, int rank) {
  load_parts<half_tokens>(
      p, rank * half_tokens, column_blocks,
      [&](int turn, int left) {
        const int stage = turn % stages, box = box_rows<half_tokens>(p.page_size);
        ptx::wait(shared.scored[stage], turn / stages % 2 ^ 1);
        const int rows = rows_brought<half_tokens>(left, box) + rows_brought<half_tokens>(left - half_tokens, box);
        if (rank == 0) ptx::arrive_and_expect(shared.keys_full[stage], rows * column_blocks * 128);
      },
      [&](int turn, int block, int token, int row) {
        const int stage = turn % stages;
        ptx::load_box_for_leader(shared.keys[stage][block] + token * 128, map, 0, row, block, shared.keys_full[stage]);
      });
}

// One warp: half of the columns of each tile.
__device__ __forceinline__ void load_values(Shared& shared, const CUtensorMap& map, const Parameters& p, int rank) {
  const int turns = load_parts<tokens_per_tile>(
      p, 0, value_blocks,
      [&](int turn, int left) {
        const int stage = turn % stages,
                  rows = rows_brought<tokens_per_tile>(left, box_rows<tokens_per_tile>(p.page_size));
        ptx::wait(shared.added[stage], turn / stages % 2 ^ 1);
        ptx::arrive_and_expect(shared.values_full[stage], rows * value_blocks * 128);
      },
      [&](int turn, int block, int token, int row) {
        const int stage = turn % stages;
        ptx::load_box(shared.values[stage][block] + token * 128, map, 0, row, rank * value_blocks + block,
                      shared.values_full[stage]);
      });
  // The leader signals this block when products are done: it stays until then. For the last ones its workers wait.
  if (turns > 1) ptx::wait(shared.added[(turns - 2) % stages], (turns - 2) / stages % 2);
}

// One thread: the queries of each item, 64 rows.
__device__ __forceinline__ void load_queries_of_half(Shared& shared, const CUtensorMap& latent_map,
                                                     const CUtensorMap& rotated_map, const Parameters& p, int rank) {
  const Range range = own_items(p.work);
  int turn = 0;
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    if (is_empty(item)) continue;
    ptx::wait(shared.q_empty, turn++ % 2 ^ 1);
    if (rank == 0) ptx::arrive_and_expect(shared.q_full, 2 * column_blocks * block_bytes);
    ptx::load_box_for_leader(shared.q[0], latent_map, 0, item.first_row, 0, shared.q_full);
    ptx::load_box_for_leader(shared.q[column_blocks - 1], rotated_map, 0, item.first_row, 0, shared.q_full);
  }
  if (turn) ptx::wait(shared.q_empty, (turn - 1) % 2);  // as for values
}

// The scores of a tile.
__device__ __forceinline__ void score(Shared& shared, int turn) {
  constexpr uint32_t instruction = tcgen05::instruction(2 * rows_per_tile, tokens_per_tile, false);
  const int stage = turn % stages;
  ptx::wait(shared.keys_full[stage], turn / stages % 2);
  for (int block = 0; block < column_blocks; ++block)
    for (int step = 0; step < 4; ++step)
      tcgen05::multiply<2>(shared.tensor_memory + scores_column + stage * half_tokens,
                           tcgen05::descriptor(ptx::shared_address(shared.q[block]) + step * 32, 16),
                           tcgen05::descriptor(ptx::shared_address(shared.keys[stage][block]) + step * 32, 16),
                           instruction, block + step > 0);
  tcgen05::commit_to_both(shared.scored[stage]);
}

// The values of a tile times their weights, onto the result: two products of 256 columns, 128 of each block.
__device__ __forceinline__ void add_values(Shared& shared, int turn, bool is_first) {
  constexpr uint32_t instruction = tcgen05::instruction(2 * rows_per_tile, 256, true);
  const int stage = turn % stages;
  for (int step = 0; step < 4; ++step)
    for (int part = 0; part < 2; ++part)
      tcgen05::multiply<2>(
          shared.tensor_memory + part * 128,
          tcgen05::descriptor(ptx::shared_address(shared.weights[stage]) + step * 32, 16),
          tcgen05::descriptor(ptx::shared_address(shared.values[stage][part * 2]) + step * 2048, block_bytes),
          instruction, !is_first || step > 0);
  tcgen05::commit_to_both(shared.added[stage]);
}

// One thread of the leader: all products of the pair. The scores of a tile are begun before the weights of the one
// before are waited for. They overwrite those of two tiles ago, whose weights were there.
__device__ __forceinline__ void multiply(Shared& shared, const Parameters& p) {
  const Range range = own_items(p.work);
  int turn = 0, q_turn = 0;
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    if (is_empty(item)) continue;
    ptx::wait(shared.q_full, q_turn++ % 2);
    score(shared, turn);
    for (int tile = item.first_tile; tile < item.last_tile; ++tile, ++turn) {
      if (tile + 1 < item.last_tile)
        score(shared, turn + 1);
      else
        tcgen05::commit_to_both(shared.q_empty);
      ptx::wait_for_cluster(shared.weighed[turn % stages], turn / stages % 2);
      tcgen05::fence_after_sync();
      add_values(shared, turn, tile == item.first_tile);
    }
  }
}

// The halves of a row are in threads of two warps, which give each other a number each time.
struct Exchange {
  float (*exchanged)[2][rows_per_tile];
  int turn = 0;

  __device__ float operator()(const HalfRow& mine, float number) {
    float(*now)[rows_per_tile] = exchanged[turn++ % 2];  // the other one may still be read
    now[mine.half][mine.row] = number;
    ptx::sync(halves_met + mine.row / 32, 64);
    return now[mine.half ^ 1][mine.row];
  }
};

// The weights of a tile, made of its scores.
__device__ __forceinline__ void weigh(Shared& shared, HalfRow& mine, Exchange& exchange, const Item& item, int tile,
                                      int turn) {
  const bool is_first = tile == item.first_tile;
  const int stage = turn % stages, parity = turn / stages % 2;
  float scores[32];
  ptx::wait(shared.scored[stage], parity);
  tcgen05::fence_after_sync();
  tcgen05::load(scores, mine.result + scores_column + stage * half_tokens);
  tcgen05::wait_loads();
  float most = mine.mask(scores, item, tile);
  most = fmaxf(most, exchange(mine, most)) * mine.p.scale;

  const bool grows = mine.grows(most);
  if (__any_sync(~0u, grows)) {
    if (!is_first) {  // the result may be changed when the tile before was added
      ptx::wait(shared.added[(turn - 1) % stages], (turn - 1) / stages % 2);
      tcgen05::fence_after_sync();
    }
    mine.grow(grows, most, !is_first);
  }
  // What made the scores came after the products with the weights of two tiles ago, which are overwritten here.
  mine.write_weights(scores, shared.weights[stage]);
  ptx::wait(shared.values_full[stage], parity);
  clear_past_end<value_blocks>(shared.values[stage], item.length - tile * tokens_per_tile);
  ptx::fence_async_shared();
  tcgen05::fence_before_sync();
  __syncwarp();
  if (threadIdx.x % 32 == 0) ptx::arrive_at_leader(shared.weighed[stage]);  // and with them this block's values
}

__device__ __forceinline__ void work(Shared& shared, const Parameters& p) {
  const Range range = own_items(p.work);
  HalfRow mine{p, shared.tensor_memory + tcgen05::warp_lanes(), static_cast<int>(threadIdx.x / 64),
               static_cast<int>(threadIdx.x % 64)};
  Exchange exchange{shared.exchanged};
  int turn = 0;
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    mine.begin();
    for (int tile = item.first_tile; tile < item.last_tile; ++tile, ++turn)
      weigh(shared, mine, exchange, item, tile, turn);
    if (!is_empty(item)) {
      ptx::wait(shared.added[(turn - 1) % stages], (turn - 1) / stages % 2);
      tcgen05::fence_after_sync();
    }
    mine.write(item, mine.sum + exchange(mine, mine.sum), !is_empty(item));
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

// As mla_decode of mla_decode_sm100.cu. The lists of the two blocks of a pair have the same tiles in the same order. Of
// the cache there are two maps: boxes of up to 32 tokens of all columns, and of up to 64 of half of those of values.
extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(256, 1)
    mla_decode_pairs(const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap rotated_queries,
                     const __grid_constant__ CUtensorMap keys, const __grid_constant__ CUtensorMap values,
                     const int* work_list, const int* tables, __nv_bfloat16* out, float* logarithms, __half* partials,
                     float2* partial_half_rows, int* counters, int table_columns, int page_size, int heads,
                     float scale) {
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
  const int rank = static_cast<int>(ptx::cluster_rank());
  if (threadIdx.x == 0) {
    ptx::prefetch(queries);
    ptx::prefetch(rotated_queries);
    ptx::prefetch(keys);
    ptx::prefetch(values);
    ptx::init_barrier(shared.q_full, 1);
    ptx::init_barrier(shared.q_empty, 1);
    for (int stage = 0; stage < stages; ++stage) {
      ptx::init_barrier(shared.keys_full[stage], 1);
      ptx::init_barrier(shared.values_full[stage], 1);
      ptx::init_barrier(shared.scored[stage], 1);
      ptx::init_barrier(shared.weighed[stage], worker_warps);
      ptx::init_barrier(shared.added[stage], 1);
    }
    ptx::fence_barrier_init();
  }
  if (warp == 4) tcgen05::allocate<columns, 2>(shared.tensor_memory);
  ptx::cluster_sync();
  if (warp < 4) {
    work(shared, p);
  } else if (warp == 4) {
    load_keys(shared, keys, p, rank);
  } else if (warp == 5) {
    load_values(shared, values, p, rank);
  } else if (warp == 6) {
    if (lane == 0) load_queries_of_half(shared, queries, rotated_queries, p, rank);
  } else if (rank == 0) {
    if (lane == 0) multiply(shared, p);
  }
  __syncwarp();
  ptx::cluster_sync();  // neither block ends while the other signals it
  if (warp == 4) tcgen05::release<columns, 2>(shared.tensor_memory);
}
