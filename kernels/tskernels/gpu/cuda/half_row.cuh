// What one thread does with its half of a row on Blackwell: 32 of a tile's 64 tokens, and 256 of the result's 512
// columns, which lie in one lane of tensor memory.
#pragma once

#include "join_splits.cuh"
#include "tcgen05.cuh"

namespace mla {

struct HalfRow {
  const Parameters& p;
  const uint32_t result;  // the lanes of this warp, from the result's first column on
  const int half, row;    // tokens 32 * half to 32 * half + 31, columns 256 * half to 256 * half + 255
  float largest, sum;     // what weights are relative to; sum over this thread's tokens

  __device__ void begin() { largest = -INFINITY, sum = 0; }

  // Scores of tokens that the row does not see become -inf; the largest of the others.
  __device__ float mask(float (&scores)[32], const Item& item, int tile) const {
    const int seen =
        min(item.cached + (item.offset + row) / p.heads + 1, item.length) - tile * tokens_per_tile - half * 32;
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (i >= seen) scores[i] = -INFINITY;
      most = fmaxf(most, scores[i]);
    }
    return most;
  }

  // Whether weights have to become relative to `most`, the row's largest score times the scale. They may grow to 2^8
  // before: relative precision is the same, and most tiles need not touch the result.
  __device__ bool grows(float most) const { return most > largest + 8 || (largest == -INFINITY && most > -INFINITY); }

  // A warp, where a row of it grows. shrinks: the result has been begun.
  __device__ void grow(bool grows, float most, bool shrinks) {
    const float factor = grows ? ptx::exp2(largest - most) : 1;
    if (shrinks) shrink(factor);
    if (grows) sum *= factor, largest = most;
  }

  // The weights of this thread's tokens, into a tile of 64 rows with a 128-byte swizzle.
  __device__ void write_weights(const float (&scores)[32], uint8_t* weights) {
    const float base = largest == -INFINITY ? 0 : largest;
#pragma unroll
    for (int i = 0; i < 32; i += 8) {
      uint32_t packed[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float a = ptx::exp2(fmaf(scores[i + j * 2], p.scale, -base));
        const float b = ptx::exp2(fmaf(scores[i + j * 2 + 1], p.scale, -base));
        sum += a + b;
        packed[j] = ptx::pack_bf16(a, b);
      }
      const int chunk = half * 4 + i / 8;
      *reinterpret_cast<uint4*>(weights + row * 128 + (chunk ^ row % 8) * 16) = {packed[0], packed[1], packed[2],
                                                                                 packed[3]};
    }
  }

  // A warp: its part of the result of an item, or of the partial one. total: the sum of the whole row; any: there is a
  // result; otherwise zeros are written.
  __device__ void write(const Item& item, float total, bool any) const {
    const float inverse = total > 0 ? ptx::reciprocal(total) : 0, logarithm = largest + __log2f(total);
    const bool written = row < item.rows, whole = item.splits == 1;
    const size_t to = static_cast<size_t>(whole ? item.first_row : (item.partial + item.split) * rows_per_tile) + row;
    const float most = whole || !any ? 0 : largest_magnitude(), factor = whole ? inverse : to_unit(most);
    if (written) {
      if (!whole)
        __stcg(p.partials.half_rows + to * 2 + half, float2{logarithm, most * inverse});
      else if (half == 0 && p.output.logarithms)
        p.output.logarithms[to] = natural(logarithm);
    }
    auto* octets = reinterpret_cast<uint4*>(whole ? static_cast<void*>(p.output.out) : p.partials.out) +
                   to * row_octets + half * half_octets;
#pragma unroll 1
    for (int column = 0; column < 256; column += 32) {
      float some[32] = {};
      if (any) {
        tcgen05::load(some, result + column);
        tcgen05::wait_loads();
      }
      if (!written) continue;
#pragma unroll
      for (int i = 0; i < 32; i += 8) {
        uint32_t packed[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int in_row = i + j * 2, in_part = j * 8 + i / 4;  // see column_pair
          const float a = (whole ? some[in_row] : some[in_part]) * factor;
          const float b = (whole ? some[in_row + 1] : some[in_part + 1]) * factor;
          packed[j] = whole ? ptx::pack_bf16(a, b) : ptx::pack_f16(a, b);
        }
        __stcg(octets + (column + i) / 8, uint4{packed[0], packed[1], packed[2], packed[3]});
      }
    }
    tcgen05::fence_before_sync();
  }

 private:
  // Of this thread's columns of the result.
  __device__ float largest_magnitude() const {
    float most = 0;
#pragma unroll 1
    for (int column = 0; column < 256; column += 32) {
      float some[32];
      tcgen05::load(some, result + column);
      tcgen05::wait_loads();
#pragma unroll
      for (const float x : some) most = fmaxf(most, fabsf(x));
    }
    return most;
  }

  // The result so far, relative to a larger score.
  __device__ void shrink(float factor) {
#pragma unroll 1
    for (int column = 0; column < 256; column += 32) {
      float some[32];
      tcgen05::load(some, result + column);
      tcgen05::wait_loads();
#pragma unroll
      for (float& x : some) x *= factor;
      tcgen05::store(result + column, some);
    }
    tcgen05::wait_stores();
  }
};

// 128 threads: values past the end of the sequence, `present` tokens after the tile's first, become zeros, since
// nothing times what was left in the cache may be no number.
template <int blocks>
__device__ __forceinline__ void clear_past_end(uint8_t (*values)[block_bytes], int present) {
  if (present >= tokens_per_tile) return;
#pragma unroll 1
  for (int block = 0; block < blocks; ++block)
#pragma unroll 1
    for (int byte = present * 128 + threadIdx.x * 16; byte < block_bytes; byte += 128 * 16)
      *reinterpret_cast<int4*>(values[block] + byte) = int4{};
}

}  // namespace mla
