// The joining of partial results of a row tile, by all blocks that have one.
#pragma once

#include "mla_work.cuh"

namespace mla {

__device__ __forceinline__ float natural(float binary) { return binary * 0.6931471805599453f; }

// Half a row of a partial result is kept as f16 relative to its largest magnitude: half of the traffic of f32, an
// eighth of the error of bf16, from 1e-37 on, below which it is zeros. What to multiply by for that.
__device__ __forceinline__ float to_unit(float largest) { return largest > 1e-37f ? ptx::reciprocal(largest) : 0; }

// Blocks count twice, when their part is there and when they have seen all; the last count leaves zero.
__device__ __forceinline__ int counted(const Item& item) { return 2 * item.splits - 1; }

constexpr int max_splits = 160;
constexpr int row_octets = latent / 8, half_octets = row_octets / 2;

// A share of all splits of a row tile has 64 rows at most, and may be rounded up to 16 bytes in each.
struct Joining {
  uint4 parts[rows_per_tile * row_octets + max_splits];
  float weights[2 * rows_per_tile + 3 * max_splits];
  float sums[256 * 8];
};

// A warp's, of half a row: each lane has what is kept beside every 32nd split.
using OfSplits = float2[max_splits / 32];

__device__ __forceinline__ void load_half_row(const float2* half_rows, int splits, OfSplits& found) {
#pragma unroll
  for (int i = 0; i < max_splits / 32; ++i) {
    const int split = i * 32 + threadIdx.x % 32;
    found[i] = split < splits ? __ldcg(half_rows + split * rows_per_tile * 2) : float2{-INFINITY, 0};
  }
}

// The largest of a warp, by integers of the same order: one instruction where shuffles would be five, one after
// another.
__device__ __forceinline__ float largest_of_warp(float x) {
  const int bits = __float_as_int(x), most = __reduce_max_sync(~0u, bits ^ (bits >> 31 & 0x7fffffff));
  return __int_as_float(most ^ (most >> 31 & 0x7fffffff));
}

// What each split weighs, by a warp; the binary logarithm of their sum.
__device__ __forceinline__ float weigh_splits(OfSplits& mine, int splits, float* weights) {
  float largest = -INFINITY, sum = 0;
#pragma unroll
  for (const float2& half_row : mine) largest = fmaxf(largest, half_row.x);
  largest = largest_of_warp(largest);
  const float base = largest == -INFINITY ? 0 : largest;
#pragma unroll
  for (float2& half_row : mine) sum += half_row.x = ptx::exp2(half_row.x - base);
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  const float inverse = sum > 0 ? ptx::reciprocal(sum) : 0;
#pragma unroll
  for (int i = 0; i < max_splits / 32; ++i) {
    const int split = i * 32 + threadIdx.x % 32;
    if (split < splits) weights[split] = mine[i].x * inverse * mine[i].y;
  }
  return base + __log2f(sum);
}

// Add eight f16, weighed.
__device__ __forceinline__ void add(float (&sum)[8], const uint4& octet, float weight) {
  const uint32_t pairs[4] = {octet.x, octet.y, octet.z, octet.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = ptx::unpack_f16(pairs[i]);
    sum[i * 2] += weight * pair.x;
    sum[i * 2 + 1] += weight * pair.y;
  }
}

// The pair of columns that a partial result has at this place: of each 32 columns four times four pairs, as registers
// have them, so that they are written as they are.
__device__ __forceinline__ int column_pair(int kept) { return (kept & ~15) | kept % 4 * 4 | kept / 4 % 4; }

// Join the partial results of a row tile. Each block waits until all are there, and does its share of the elements.
// They run at the same time, since there are no more blocks than multiprocessors. All the parts are copied at once, so
// memory is waited for once. `barrier`: a named barrier of the `threads` threads (a power of two, at most 256).
template <int threads>
__device__ __forceinline__ void combine(const Item& item, const Partials& partials, const Output& output,
                                        Joining& shared, int thread, int barrier) {
  const int total = item.rows * row_octets, share = (total + item.splits - 1) / item.splits;
  const int begin = min(item.split * share, total), count = min(share, total - begin);

  // `width` threads side by side take octets of columns, threads / width groups of them the splits in turn.
  int width = 8;
  while (width < share && width < threads) width *= 2;
  const int lane = thread % width, group = thread / width, groups = threads / width;
  const size_t tile = static_cast<size_t>(item.partial) * rows_per_tile;
  const uint4* parts = reinterpret_cast<const uint4*>(partials.out) + tile * row_octets + begin;
  const int first_half = begin / half_octets, halves = count ? (begin + count - 1) / half_octets - first_half + 1 : 0;
  const float2* half_rows = partials.half_rows + tile * 2 + first_half;

  int* counter = partials.counters + item.counter;
  if (thread == 0) {
    while (ptx::load_acquire(counter) < item.splits) {
    }
  }
  ptx::sync(barrier, threads);
  OfSplits of_splits;  // asked for first, since there is more to do when they have come
  if (thread / 32 < halves) load_half_row(half_rows + thread / 32, item.splits, of_splits);
#pragma unroll 2
  for (int split = group; split < item.splits; split += groups)
#pragma unroll 1
    for (int i = lane; i < count; i += width)
      ptx::copy_16(&shared.parts[split * share + i], parts + split * rows_per_tile * row_octets + i);
#pragma unroll 1
  for (int i = thread / 32; i < halves; i += threads / 32) {
    const int half_row = first_half + i;
    if (i >= threads / 32) load_half_row(half_rows + i, item.splits, of_splits);
    const float logarithm = weigh_splits(of_splits, item.splits, shared.weights + i * item.splits);
    if (thread % 32 == 0 && half_row % 2 == 0 && begin <= half_row * half_octets && output.logarithms)
      output.logarithms[item.first_row + half_row / 2] = natural(logarithm);
  }
  ptx::wait_copies();
  ptx::sync(barrier, threads);

  uint32_t* out = reinterpret_cast<uint32_t*>(output.out + static_cast<size_t>(item.first_row) * latent);
#pragma unroll 1
  for (int first = 0; first < count; first += width) {
    const int i = first + lane;
    float sum[8] = {};
    if (i < count) {
      const float* weights = shared.weights + ((begin + i) / half_octets - first_half) * item.splits;
#pragma unroll 4
      for (int split = group; split < item.splits; split += groups)
        add(sum, shared.parts[split * share + i], weights[split]);
    }
    if (groups == 1) {
      if (i < count)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          out[column_pair(begin * 4 + i * 4 + k)] = ptx::pack_bf16(sum[k * 2], sum[k * 2 + 1]);
      continue;
    }
    // Groups within a warp add up by shuffles, the rest through shared memory; `width` threads cover the whole share.
#pragma unroll 1
    for (int step = width; step < 32; step *= 2)
#pragma unroll
      for (float& x : sum) x += __shfl_xor_sync(~0u, x, step);
    const int places = min(groups, threads / 32);
    if (width >= 32 || thread % 32 < width) {
      float4* to = reinterpret_cast<float4*>(shared.sums) + (min(group, thread / 32) * width + lane) * 2;
      to[0] = {sum[0], sum[1], sum[2], sum[3]};
      to[1] = {sum[4], sum[5], sum[6], sum[7]};
    }
    ptx::sync(barrier, threads);
#pragma unroll 1
    for (int pair = thread; pair < count * 4; pair += threads) {
      float2 all = {0, 0};
#pragma unroll 4
      for (int place = 0; place < places; ++place) {
        const float2 some = reinterpret_cast<const float2*>(shared.sums)[place * width * 4 + pair];
        all = {all.x + some.x, all.y + some.y};
      }
      out[column_pair(begin * 4 + pair)] = ptx::pack_bf16(all.x, all.y);
    }
  }
  if (thread == 0) ptx::count_relaxed(counter, counted(item));
  ptx::sync(barrier, threads);
}

}  // namespace mla
