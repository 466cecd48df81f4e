// What the decode kernels of latent attention share: the list of work that the host planned, and the loading of tiles.
#pragma once

#include <cuda_fp16.h>

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

// Partial results. Of each half of a row (256 columns): elements relative to the largest magnitude of the half, and
// {binary logarithm of the row's sum, that magnitude after division by the sum}.
struct Partials {
  __half* out;        // [64, 512], columns as `column_pair` says
  float2* half_rows;  // [64, 2]
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
// under way is enough for memory's full bandwidth. Tiles without tokens of this step come while launches before this
// one still run: earlier steps wrote them.
template <int stages>
__device__ __forceinline__ void load_tiles(uint8_t (*cache)[column_blocks][block_bytes], uint64_t* full,
                                           uint64_t* empty, const CUtensorMap& map, const Parameters& p, int first,
                                           int end) {
  const int lane = threadIdx.x % 32;
  // Boxes are of as many tokens as divide pages and tiles, a power of two.
  const int box_bits = __ffs(p.page_size | tokens_per_tile) - 1, box = 1 << box_bits;
  const int boxes = tokens_per_tile >> box_bits, page_boxes = p.page_size >> box_bits;
  const int depth = boxes == 1 ? end - first : 1;
  const Range range = own_items(p.work);
  uint32_t turn = 0;
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    const int* table = p.tables + static_cast<size_t>(item.sequence) * p.table_columns;
    const uint32_t last = (min(item.last_tile * tokens_per_tile, item.length) + box - 1) >> box_bits;
    int row = 0;  // of the cache, of the box that is this lane's among the next 32
    for (int tile = item.first_tile, next = 0; tile < item.last_tile; ++tile, ++turn, next += boxes) {
      const int at = tile * boxes;
      const auto look_up = [&](uint32_t mine) {
        if (mine >= last) return;
        const uint32_t page = page_boxes == 1 ? mine : mine / page_boxes;
        row = (__ldg(table + page) * page_boxes + mine - page * page_boxes) << box_bits;
      };
      if (next % 32 == 0) look_up(at + lane);
      const int present = min(boxes, static_cast<int>(last) - at), stage = turn % stages;
      if ((tile + 1) * tokens_per_tile > item.cached) ptx::wait_for_launches();
      if (lane == 0) {
        if (turn) ptx::wait(full[(turn - 1) % stages], (turn - 1) / stages % 2);
        ptx::wait(empty[stage], turn / stages % 2 ^ 1);
        ptx::arrive_and_expect(full[stage], present * (end - first) * box * 128);
      }
      __syncwarp();
#pragma unroll 1
      for (int b = 0; b < present; ++b) {
        if (b == 32) look_up(at + 32 + lane);  // of 64, where each token is a box
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

}  // namespace mla
