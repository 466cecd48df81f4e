// What a warpgroup does on Hopper with half of the columns of a row tile's result: scores and weights of tiles,
// products with the values, and the writing of what came out. The kernels differ in where they have weights, in what
// they wait for, and in the order of all this.
#pragma once

#include "join_splits.cuh"
#include "wgmma.cuh"

namespace mla {

constexpr int warpgroup = 128, consumers = 2 * warpgroup;
constexpr int stages = 2;
constexpr int left_blocks = 4;  // of 64 columns; five more, with the rotated ones, are the right half

enum Barrier { weights_even = 1, weights_odd, item_done, side_left, side_right };

// Where the result is turned from the order of registers to that of rows, as it is written; rows are set apart for the
// banks.
using Turned = uint4[rows_per_tile][row_octets + 1];

// A thread's part of that. A kernel's Shared has, in shared memory:
//   q, cache[stages]         blocks of columns as the copy engine brings them; `turned` in place of q
//   largest[2], sums[2][2]   of each row: of even and odd tiles; of items in turn, left and right
//   q_full, q_empty, empty[2][stages]  mbarriers, the last of halves of tiles
//   weights(turn)            where one warpgroup leaves a tile's weights for the other
//   weights_in_tile          whether that is where keys of the tile were
//   wait_for(turn, block)    until that block of columns has come, where those before it do not tell
//   ends_cleared             whether rows past the end of a sequence come as zeros
template <class Shared>
struct HalfTile {
  Shared& shared;
  const Parameters& p;
  const int side;    // 0: the left columns, 1: the right ones
  float out[128];    // 64 rows of 256 columns
  float scores[32];  // 64 rows of 64 tokens
  uint32_t weights[16];
  float largest[2], sums[2];  // of this thread's two rows; sums over what this thread weighed
  float factors[2];           // by which what was summed up so far shrinks
  int seen_by_all;            // keys of the item; divided out ahead, or it would be between products

  __device__ HalfTile(Shared& shared, const Parameters& p, int side) : shared(shared), p(p), side(side) {}

  __device__ int warp() const { return threadIdx.x / 32 % 4; }
  __device__ int lane() const { return threadIdx.x % 32; }
  __device__ int row(int which) const { return warp() * 16 + which * 8 + lane() / 4; }

  __device__ void begin(const Item& item) {
    seen_by_all = item.cached + item.offset / p.heads + 1;
    asm volatile("" : "+r"(seen_by_all));
    for (float& x : out) x = 0;
    for (int which = 0; which < 2; ++which) largest[which] = -INFINITY, sums[which] = 0;
  }

  // Begin the scores of the tile of this turn, columns from block `first` to before `end`.
  template <int first = 0, int end = column_blocks>
  __device__ void begin_scores(int turn) {
    const uint64_t queries = wgmma::descriptor(ptx::shared_address(shared.q), 0),
                   keys = wgmma::descriptor(ptx::shared_address(shared.cache[turn % stages]), 0);
    wgmma::pin(scores);
    wgmma::fence();
#pragma unroll
    for (int block = first; block < end; ++block) {
      shared.wait_for(turn, block);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const int at = block * block_bytes + step * 32;
        wgmma::multiply_n64(scores, wgmma::advance(queries, at), wgmma::advance(keys, at), block + step > 0);
      }
    }
    wgmma::commit();
  }

  // Until they are there; pending: groups of products that were begun after.
  template <int pending>
  __device__ void end_scores() {
    wgmma::wait<pending>();
    wgmma::pin(scores);
  }

  // From scores to weights. Rows see keys before cached + (offset + row) / heads + 1. Weights may grow to 2^8 before
  // they become relative to a larger score: relative precision is the same, and most tiles need not touch the result.
  __device__ void softmax(const Item& item, int tile) {
    const int end = (tile + 1) * tokens_per_tile;
    if (end > seen_by_all) {
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
      float four[4];  // not one after the other
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const float score = scores[i / 2 * 4 + which * 2 + i % 2];
        four[i % 4] = i < 4 ? score : fmaxf(four[i % 4], score);
      }
      float most = fmaxf(fmaxf(four[0], four[1]), fmaxf(four[2], four[3]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      most *= p.scale;
      if (most <= largest[which] + 8 && largest[which] > -INFINITY) most = largest[which];
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

  // Weights and new largest scores for the other warpgroup; rows of the tile past the end of the sequence become zeros:
  // they weigh nothing, but nothing times what was left in the cache may be no number.
  __device__ void publish(const Item& item, int turn, int index) {
    const int matrix = lane() / 8, at = warp() * 16 + matrix % 2 * 8 + lane() % 8;
    const int present = item.length - (item.first_tile + index) * tokens_per_tile;
    const bool clears = !Shared::ends_cleared && present < tokens_per_tile;
    if (Shared::weights_in_tile || clears) sync_side();  // the scores of all its rows are computed
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int chunk = i * 2 + matrix / 2;
      ptx::store_matrices(shared.weights(turn) + at * 128 + (chunk ^ at % 8) * 16, weights[i * 4], weights[i * 4 + 1],
                          weights[i * 4 + 2], weights[i * 4 + 3]);
    }
    if (lane() % 4 == 0)
      for (int which = 0; which < 2; ++which) shared.largest[index % 2][row(which)] = largest[which];
    if (clears) {
#pragma unroll 1
      for (int block = 0; block < latent / 64; ++block)
#pragma unroll 1
        for (int byte = present * 128 + threadIdx.x % warpgroup * 16; byte < block_bytes; byte += warpgroup * 16)
          *reinterpret_cast<int4*>(shared.cache[turn % stages][block] + byte) = int4{};
      ptx::fence_async_shared();
      sync_side();
    }
    ptx::fence_async_shared();
    ptx::arrive(index % 2 ? weights_odd : weights_even, consumers);
  }

  __device__ void sync_side() const { ptx::sync(side ? side_right : side_left, warpgroup); }

  __device__ void shrink() {
    if (!__any_sync(~0u, factors[0] != 1 || factors[1] != 1)) return;
#pragma unroll
    for (int i = 0; i < 128; ++i) out[i] *= factors[i / 2 % 2];
  }

  __device__ uint64_t values_of(int turn) const {
    return wgmma::descriptor(ptx::shared_address(shared.cache[turn % stages][side * left_blocks]), block_bytes);
  }

  // Begin to add this warpgroup's own weights times its half of the values.
  __device__ void add_own(int turn) {
    shrink();
    const uint64_t values = values_of(turn);
    wgmma::pin(out);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      wgmma::multiply_n256(out, *reinterpret_cast<uint32_t(*)[4]>(weights + step * 4),
                           wgmma::advance(values, step * 2048), true);
    wgmma::commit();
  }

  // Begin to add the other's, once they are there.
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
    const uint64_t others = wgmma::descriptor(ptx::shared_address(shared.weights(turn)), 0), values = values_of(turn);
    wgmma::pin(out);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      wgmma::multiply_n256(out, wgmma::advance(others, step * 32), wgmma::advance(values, step * 2048), true);
    wgmma::commit();
  }

  // Until they are added; what was read is free. pending: groups of products that were begun after.
  template <int pending>
  __device__ void end_values(int turn) {
    wgmma::wait<pending>();
    wgmma::pin(out);
    if (lane() == 0) ptx::arrive(shared.empty[side][turn % stages]);
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
      const float sum = shared.sums[parity][0][at] + shared.sums[parity][1][at],
                  inverse = sum > 0 ? ptx::reciprocal(sum) : 0;
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

// A warpgroup: all items, and the joining of what is split. before(item, turn) is called before each item; half tiles
// have add_tiles(item, turn).
template <class HalfTile, class Shared, class Before>
__device__ __forceinline__ void consume(Shared& shared, const Parameters& p, int side, const Before& before) {
  const Range range = own_items(p.work);
  int turn = 0;
  {
    HalfTile half(shared, p, side);
    for (int i = range.begin; i < range.end; ++i) {
      const Item item = load_item(range.items, i);
      before(item, i - range.begin);
      ptx::wait(shared.q_full, (i - range.begin) % 2);
      half.begin(item);
      half.add_tiles(item, turn);
      turn += item.last_tile - item.first_tile;
      half.finish(item, i % 2, i + 1 < range.end);
    }
  }
  // The tiles of queries and cache are read no more.
  ptx::sync(item_done, consumers);
  for (int i = range.begin; i < range.end; ++i) {
    const Item item = load_item(range.items, i);
    if (item.splits > 1) combine<consumers>(item, p.partials, p.output, shared.joining, threadIdx.x, item_done);
  }
}

}  // namespace mla
