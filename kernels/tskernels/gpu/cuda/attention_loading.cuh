// Attention of many rows on Hopper: the items of work that thread blocks take, and the warps that load them.
#pragma once

#include "ptx.cuh"

namespace attention {

constexpr int heads = HEADS, group = GROUP, width = WIDTH;
constexpr int most_rows = 128, rows_per_tile = most_rows / group * group, keys_per_tile = 128;
constexpr int column_blocks = width / 64, block_bytes = 128 * 128;  // 128 rows of 64 bf16 columns
constexpr int stages = 4 / column_blocks;
constexpr int warpgroup = 128, consumers = 2 * warpgroup;
static_assert(width == 64 || width == 128);

using Tile = uint8_t[column_blocks][block_bytes];

// A split of a tile (splits.py), for one head of keys. begin, end: its keys, whole tiles of them but for a sequence's
// newest; partial: where its result goes, -1 for the whole; rows: 0 after the last item.
struct Item {
  int sequence, token, row, rows, position, begin, end, partial, head, length;
};

struct alignas(1024) Shared {
  Tile q[2];
  Tile keys[stages], values[stages];
  Item items[2];
  uint64_t item_full[2], item_empty[2];
  uint64_t keys_full[stages], keys_empty[stages], values_full[stages], values_empty[stages];
};
static_assert(sizeof(Shared) <= 197632);  // what attention_cuda.py asks for

struct Parameters {
  const int* work;    // splits.py
  const int* tables;  // [sequences, table_columns]: the pages of each sequence
  const int* lengths;
  __nv_bfloat16* out;
  float* partials;    // [partial, HEADS, rows_per_tile, WIDTH]: divided by the sums of their weights,
  float* logarithms;  // and the binary logarithms of those sums
  int* counter;       // of items that were taken
  int table_columns, page_size;
  float scale;  // of the scores, times log2(e)
};

__device__ __forceinline__ int num_tiles(const Item& item) {
  return (item.end - item.begin + keys_per_tile - 1) / keys_per_tile;
}

// One warp: what comes next; all its lanes get it. When all blocks have failed to get one, there were as many counts as
// there are items.
__device__ __forceinline__ Item take_item(const Parameters& p, bool is_first) {
  const int narrow = __ldg(p.work), total = __ldg(p.work + 1) * heads;
  int index = blockIdx.x;
  if (!is_first) {
    if (threadIdx.x % 32 == 0) index = gridDim.x + ptx::count(p.counter, total - 1);
    index = __shfl_sync(~0u, index, 0);
  }
  if (index >= total) return {};
  const int4* record = reinterpret_cast<const int4*>(p.work) + (1 + narrow + index / heads) * 2;
  const int4 a = __ldg(record), b = __ldg(record + 1);
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, index % heads, __ldg(p.lengths + a.x)};
}

// One warp: an item's tiles of keys or values, from column block `column` of the cache on, into stages in turn. A box
// is what pages and splits have in common; those past the end of the sequence are left out.
__device__ __forceinline__ void load_tiles(Tile* tiles, uint64_t* full, uint64_t* empty, const CUtensorMap& map,
                                           const Parameters& p, const Item& item, int column, int& turn) {
  const int lane = threadIdx.x % 32, box = min(p.page_size & -p.page_size, keys_per_tile);
  const int* table = p.tables + static_cast<size_t>(item.sequence) * p.table_columns;
  for (int tile = num_tiles(item) - 1; tile >= 0; --tile, ++turn) {
    const int start = item.begin + tile * keys_per_tile, stage = turn % stages;
    const int boxes = (min(keys_per_tile, item.length - start) + box - 1) / box * column_blocks;
    const auto row = [&](int number) {
      const int token = start + number / column_blocks * box;
      return __ldg(table + token / p.page_size) * p.page_size + token % p.page_size;
    };
    int from = lane < boxes ? row(lane) : 0;  // looked up while the stage is waited for
    if (lane == 0) {
      ptx::wait(empty[stage], turn / stages % 2 ^ 1);
      ptx::arrive_and_expect(full[stage], boxes * box * 128);
    }
    __syncwarp();
    for (int number = lane; number < boxes; number += 32) {
      if (number >= 32) from = row(number);
      const int block = number % column_blocks;
      ptx::load_box(tiles[stage][block] + number / column_blocks * box * 128, map, 0, from, column + block,
                    full[stage]);
    }
  }
}

// One warp: takes items, and loads their queries and keys.
__device__ __forceinline__ void load_keys(Shared& shared, const CUtensorMap& queries, const CUtensorMap& cache,
                                          const Parameters& p) {
  for (int count = 0, turn = 0;; ++count) {
    const int slot = count % 2;
    const Item item = take_item(p, count == 0);
    if (threadIdx.x % 32 == 0) {
      ptx::wait(shared.item_empty[slot], count / 2 % 2 ^ 1);
      shared.items[slot] = item;
      if (item.rows) {
        ptx::arrive_and_expect(shared.item_full[slot], column_blocks * rows_per_tile * 128);
        for (int block = 0; block < column_blocks; ++block)
          ptx::load_box(shared.q[slot][block], queries, 0, 0, item.token + item.row / group, block, item.head,
                        shared.item_full[slot]);
      } else {
        ptx::arrive(shared.item_full[slot]);
      }
    }
    __syncwarp();
    if (!item.rows) return;
    load_tiles(shared.keys, shared.keys_full, shared.keys_empty, cache, p, item, item.head * column_blocks, turn);
  }
}

// One warp: the values of the items that the other takes.
__device__ __forceinline__ void load_values(Shared& shared, const CUtensorMap& cache, const Parameters& p) {
  for (int count = 0, turn = 0;; ++count) {
    const int slot = count % 2;
    ptx::wait(shared.item_full[slot], count / 2 % 2);
    const Item item = shared.items[slot];
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::arrive(shared.item_empty[slot]);
    if (!item.rows) return;
    load_tiles(shared.values, shared.values_full, shared.values_empty, cache, p, item,
               (heads + item.head) * column_blocks, turn);
  }
}

}  // namespace attention
