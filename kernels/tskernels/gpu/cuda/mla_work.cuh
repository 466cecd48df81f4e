// What both decode kernels of latent attention share: the list of work that the host planned, and the joining of split
// results.
#pragma once

#include "ptx.cuh"

namespace mla {

constexpr int rows_per_tile = 64, tokens_per_tile = 64, latent = 512, rotated = 64;
constexpr int column_blocks = (latent + rotated) / 64;
constexpr int block_bytes = 64 * 64 * 2;  // 64 rows or tokens of 64 bf16 columns

// A row tile of a sequence and a range of its keys, in tiles of 64 tokens (latent_splits.py writes these). Rows are
// query tokens times heads.
struct Item {
  int sequence;
  int first_row, rows;  // rows of q and out, at most 64
  int offset;           // of first_row among the rows of the sequence
  int length,
      cached;  // keys of the sequence; those before its newest tokens: row i sees cached + (offset + i) / heads + 1
  int first_tile, last_tile;  // the range; empty for rows without a sequence
  int partial, splits,
      split;    // where the partial result of split 0 is kept, how many, which this is; one split is no partial
  int counter;  // which counter tells of partial results that are there
};

__device__ __forceinline__ Item load_item(const int* items, int index) {
  const int4* from = reinterpret_cast<const int4*>(items) + index * 3;
  const int4 a = __ldg(from), b = __ldg(from + 1), c = __ldg(from + 2);
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
}

// Partial results: O [64, 512] f32, each row divided by its sum, and the binary logarithms of those sums [64].
struct Partials {
  float* out;
  float* logarithms;
  int* counters;
};

struct Output {
  __nv_bfloat16* out;  // [rows, 512]
  float* logarithms;   // [rows], natural; or null
};

// What a launch is given.
struct Parameters {
  const int* work;    // where the items of each block begin, [blocks + 1], padded to a multiple of 4; then the items
  const int* tables;  // [sequences, table_columns]: the pages of each sequence
  int table_columns, page_size, heads;
  float scale;  // of the scores, times log2(e)
  Partials partials;
  Output output;
};

struct Range {
  const int* items;
  int begin, end;
};

__device__ __forceinline__ Range own_items(const int* work) {
  return {work + (gridDim.x + 4) / 4 * 4, __ldg(work + blockIdx.x), __ldg(work + blockIdx.x + 1)};
}

// One warp: the tiles of all items, columns from block `first` to before `end`, into stages in turn. A tile is one box
// where pages have whole tiles, so the map's boxes have all these blocks; of smaller pages each block is one, and pages
// past the end are left out. A tile waits until the one before has come: what is needed first comes first, and one tile
// under way is enough for memory's full bandwidth.
template <int stages>
__device__ __forceinline__ void load_tiles(uint8_t (*cache)[column_blocks][block_bytes], uint64_t* full,
                                           uint64_t* empty, const CUtensorMap& map, const Parameters& p, int first,
                                           int end) {
  const Range range = own_items(p.work);
  const int lane = threadIdx.x % 32, box = min(p.page_size & -p.page_size, tokens_per_tile),
            boxes = tokens_per_tile / box;
  const int depth = boxes == 1 ? end - first : 1;
  int turn = 0;
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    const int* table = p.tables + static_cast<size_t>(item.sequence) * p.table_columns;
    const int last = min(item.last_tile * tokens_per_tile, item.length);
    int row = 0;  // of the cache, of the box that is this lane's among the next 32
    for (int tile = item.first_tile, next = 0; tile < item.last_tile; ++tile, ++turn, next += boxes) {
      if (next % 32 == 0) {
        const int token = tile * tokens_per_tile + lane * box;
        row = token < last ? __ldg(table + token / p.page_size) * p.page_size + token % p.page_size : 0;
      }
      const int present = min(boxes, (last - tile * tokens_per_tile + box - 1) / box), stage = turn % stages;
      if (lane == 0) {
        if (turn) ptx::wait(full[(turn - 1) % stages], (turn - 1) / stages % 2);
        ptx::wait(empty[stage], turn / stages % 2 ^ 1);
        ptx::arrive_and_expect(full[stage], present * (end - first) * box * 128);
      }
      __syncwarp();
      for (int b = 0; b < present; ++b) {
        const int from = __shfl_sync(~0u, row, (next + b) % 32), block = first + lane * depth;
        if (block < end) ptx::load_box(cache[stage][block] + b * box * 128, map, 0, from, block, full[stage]);
      }
    }
  }
}

// One thread: the queries of an item.
__device__ __forceinline__ void load_queries(uint8_t (*q)[block_bytes], uint64_t& full, const CUtensorMap& latent_map,
                                             const CUtensorMap& rotated_map, const Item& item) {
  ptx::arrive_and_expect(full, column_blocks * block_bytes);
  ptx::load_box(q[0], latent_map, 0, item.first_row, 0, full);
  ptx::load_box(q[column_blocks - 1], rotated_map, 0, item.first_row, 0, full);
}

// One thread: the queries of each item.
__device__ __forceinline__ void load_queries(uint8_t (*q)[block_bytes], uint64_t& full, uint64_t& empty,
                                             const CUtensorMap& latent_map, const CUtensorMap& rotated_map,
                                             const Parameters& p) {
  const Range range = own_items(p.work);
  for (int i = range.begin; i < range.end; ++i) {
    ptx::wait(empty, (i - range.begin) % 2 ^ 1);
    load_queries(q, full, latent_map, rotated_map, load_item(range.items, i));
  }
}

__device__ __forceinline__ float natural(float binary) { return binary * 0.6931471805599453f; }

// Blocks count twice, when their part is there and when they have seen all; the last count leaves zero.
__device__ __forceinline__ int counted(const Item& item) { return 2 * item.splits - 1; }

// Shared memory for joining: a share of all splits of a row tile has 64 rows at most, and may be rounded up to 16 bytes
// in each.
constexpr int max_splits = 160;
struct Joining {
  float4 parts[rows_per_tile * latent / 4 + max_splits];
  float weights[rows_per_tile + 2 * max_splits];
  float4 sums[256];
};

// Join the partial results of a row tile. All thread blocks that have one take part: each waits until all are there,
// and does its share of the elements. They run at the same time, since there are no more blocks than multiprocessors.
// All the parts are copied at once, so memory is waited for once. `barrier`: a named barrier of the `threads` threads
// (a power of two, at most 256).
template <int threads>
__device__ __forceinline__ void combine(const Item& item, const Partials& partials, const Output& output,
                                        Joining& shared, int thread, int barrier) {
  int* counter = partials.counters + item.counter;
  if (thread == 0) {
    while (ptx::load_acquire(counter) < item.splits) {
    }
  }
  ptx::sync(barrier, threads);
  constexpr int quads = latent / 4, tile_quads = rows_per_tile * quads;  // elements are taken four at a time
  const int total = item.rows * quads, share = (total + item.splits - 1) / item.splits;
  const int begin = min(item.split * share, total), count = min(share, total - begin);
  const int first_row = begin / quads, rows = count ? (begin + count - 1) / quads - first_row + 1 : 0;

  // `width` threads side by side take elements, threads / width groups of them the splits in turn.
  int width = 16;
  while (width < share && width < threads) width *= 2;
  const int lane = thread % width, group = thread / width, groups = threads / width;
  const float4* parts =
      reinterpret_cast<const float4*>(partials.out) + static_cast<size_t>(item.partial) * tile_quads + begin;
#pragma unroll 2
  for (int split = group; split < item.splits; split += groups)
#pragma unroll 1
    for (int i = lane; i < count; i += width)
      ptx::copy_16(&shared.parts[split * share + i], parts + split * tile_quads + i);
  const float* logarithms = partials.logarithms + item.partial * rows_per_tile + first_row;
#pragma unroll 2
  for (int i = thread; i < rows * item.splits; i += threads)
    shared.weights[i] = __ldcg(logarithms + i % item.splits * rows_per_tile + i / item.splits);
  ptx::sync(barrier, threads);
#pragma unroll 1
  for (int row = thread / 32; row < rows; row += threads / 32) {  // a warp a row: what each split weighs
    float* weights = shared.weights + row * item.splits;
    float largest = -INFINITY, sum = 0;
#pragma unroll 1
    for (int split = thread % 32; split < item.splits; split += 32) largest = fmaxf(largest, weights[split]);
    for (int step = 16; step; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    const float base = largest == -INFINITY ? 0 : largest;
#pragma unroll 1
    for (int split = thread % 32; split < item.splits; split += 32)
      sum += weights[split] = ptx::exp2(weights[split] - base);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
#pragma unroll 1
    for (int split = thread % 32; split < item.splits; split += 32) weights[split] *= sum > 0 ? 1 / sum : 0;
    if (thread % 32 == 0 && output.logarithms && begin <= (first_row + row) * quads)
      output.logarithms[item.first_row + first_row + row] = natural(base + __log2f(sum));
  }
  ptx::wait_copies();
  ptx::sync(barrier, threads);

#pragma unroll 1
  for (int first = 0; first < count; first += width) {
    const int i = first + lane;
    float4 sum = {0, 0, 0, 0};
    if (i < count) {
      const float* weights = shared.weights + ((begin + i) / quads - first_row) * item.splits;
#pragma unroll 4
      for (int split = group; split < item.splits; split += groups) {
        const float4 part = shared.parts[split * share + i];
        const float w = weights[split];
        sum = {sum.x + w * part.x, sum.y + w * part.y, sum.z + w * part.z, sum.w + w * part.w};
      }
    }
    if (groups > 1) {  // then `width` threads cover the whole share
      shared.sums[thread] = sum;
      ptx::sync(barrier, threads);
      if (group == 0)
#pragma unroll 1
        for (int other = 1; other < groups; ++other) {
          const float4 part = shared.sums[thread + other * width];
          sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
        }
    }
    if (group == 0 && i < count)
      *reinterpret_cast<uint2*>(output.out + static_cast<size_t>(item.first_row) * latent + (begin + i) * 4) = {
          ptx::pack_bf16(sum.x, sum.y), ptx::pack_bf16(sum.z, sum.w)};
  }
  if (thread == 0) ptx::count_relaxed(counter, counted(item));
  ptx::sync(barrier, threads);
}

}  // namespace mla
