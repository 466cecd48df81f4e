// Tiles of a cache of e4m3, which become bf16 on their way into shared memory.
//
// Tensor cores multiply bf16 with bf16: queries are that, and weights, and values lie by columns, which products of fp8
// do not take. The copy engine converts nothing, so a warpgroup does, through registers. A load that is under way needs
// registers and no shared memory, where there is room for two tiles of bf16 alone.
#pragma once

#include "mla_work.cuh"

namespace mla {

constexpr int loading_warps = 4;
constexpr int loading_registers = 104;  // of a thread; with more the compiler would ask for two tiles at once
constexpr int loads_per_tile = 2 * column_blocks;  // of a thread: 16 columns of a block, of each of two tokens

// Where the rows of a thread are in the cache, tile after tile of a block's items; -1 where there are none.
class Rows {
 public:
  __device__ explicit Rows(const Parameters& p) : p_(p), range_(own_items(p.work)), index_(range_.begin - 1) {}

  // To the next tile, if there is one.
  __device__ __forceinline__ bool next(int (&rows)[2]) {
    while (++tile_ >= last_tile_) {
      if (++index_ >= range_.end) {
        rows[0] = rows[1] = -1;
        return false;
      }
      const Item item = load_item(range_.items, index_);
      table_ = p_.tables + static_cast<size_t>(item.sequence) * p_.table_columns;
      length_ = item.length;
      tile_ = item.first_tile - 1;
      last_tile_ = item.last_tile;
    }
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const int token = tile_ * tokens_per_tile + which * 32 + threadIdx.x % 128 / 4;
      rows[which] = token < length_ ? __ldg(table_ + token / p_.page_size) * p_.page_size + token % p_.page_size : -1;
    }
    return true;
  }

 private:
  const Parameters& p_;
  const Range range_;
  int index_, tile_ = 0, last_tile_ = 0, length_ = 0;
  const int* table_ = nullptr;
};

// 16 columns of a block as bf16, two of the parts that a row of 128 bytes is exchanged in.
__device__ __forceinline__ void store_widened(uint8_t* block, int token, int part, const uint4& bytes) {
  const uint32_t fours[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
  uint8_t* row = block + token * 128;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint4 wide;
    ptx::widen_e4m3(fours[i * 2], wide.x, wide.y);
    ptx::widen_e4m3(fours[i * 2 + 1], wide.z, wide.w);
    *reinterpret_cast<uint4*>(row + ((part * 2 + i) ^ token % 8) * 16) = wide;
  }
}

// One warpgroup: the tiles of all items into stages in turn, in two halves, each with barriers of its own; the left has
// so many blocks of columns, which may be all. Rows past the end of a sequence become zeros.
template <int stages, int left_blocks>
__device__ __forceinline__ void load_fp8_tiles(uint8_t (*tiles)[column_blocks][block_bytes], uint64_t (*full)[stages],
                                               uint64_t (*empty)[stages], const uint8_t* cache, int row_bytes,
                                               const Parameters& p) {
  const int token = threadIdx.x % 128 / 4, part = threadIdx.x % 4;
  // By number of 16 bytes, which takes a register less than by address.
  const auto* chunks = reinterpret_cast<const uint4*>(cache);
  const uint32_t row_chunks = row_bytes / 16;
  const auto load = [&](int row, int block) {
    return row < 0 ? uint4{} : __ldg(chunks + (static_cast<uint32_t>(row) * row_chunks + part) + block * 4);
  };
  Rows walk(p);
  int rows[2];
  bool more = walk.next(rows);
  uint4 ahead[loads_per_tile];  // a tile is always under way, 36 KB
#pragma unroll
  for (int i = 0; i < loads_per_tile; ++i) ahead[i] = load(rows[i % 2], i / 2);
  for (int turn = 0; more; ++turn) {
    more = walk.next(rows);
    const int stage = turn % stages, parity = turn / stages % 2 ^ 1;
#pragma unroll
    for (int i = 0; i < loads_per_tile; ++i) {
      const int block = i / 2, half = block >= left_blocks;
      if (i == 0 || i == 2 * left_blocks) ptx::wait(empty[half][stage], parity);
      store_widened(tiles[stage][block], token + i % 2 * 32, part, ahead[i]);
      ahead[i] = load(rows[i % 2], block);
      if (i + 1 == 2 * left_blocks || i + 1 == loads_per_tile) {
        ptx::fence_async_shared();
        __syncwarp();
        if (threadIdx.x % 32 == 0) ptx::arrive(full[half][stage]);
      }
    }
  }
}

}  // namespace mla
