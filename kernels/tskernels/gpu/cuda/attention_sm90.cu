// Attention of many rows over a paged cache (GQA) for Hopper: tensor cores (wgmma), copy engine (TMA), persistent
// thread blocks.
//
// Rows are tokens times the heads that share a key. A block takes tiles of up to 128 rows, the longest first, each with
// its keys in tiles of 128, the newest first, so that those which need a mask come first. One warp loads queries and
// keys, one values; two warpgroups have 64 rows each. While tensor cores multiply a tile's keys and the weights of the
// tile before, a warpgroup has the scores of one tile in registers, and makes weights of them; the two take turns, so
// that one makes weights while the other multiplies. What is compiled: -D HEADS, GROUP and WIDTH.
#include "attention_loading.cuh"
#include "wgmma.cuh"

namespace {

using namespace attention;

constexpr int computing_registers = 224, moving_registers = 56;

enum Barrier { turn_left = 1, turn_right, side_left, side_right, cleared };

struct Consumer {
  Shared& shared;
  const Parameters& p;
  const int side;
  float out[width / 2];  // 64 rows of WIDTH columns
  float scores[64];      // 64 rows of 128 keys; then their weights
  uint32_t weights[32];  // those of the tile before
  // Of this thread's two rows: what is subtracted from scores; the sum of what this thread weighed; what is kept of
  // that and of `out` when the base changes.
  float base[2], sums[2], kept[2];

  __device__ Consumer(Shared& shared, const Parameters& p, int side) : shared(shared), p(p), side(side) {}

  __device__ int warp() const { return threadIdx.x / 32 % 4; }
  __device__ int lane() const { return threadIdx.x % 32; }
  __device__ int row(int which) const { return side * 64 + warp() * 16 + which * 8 + lane() / 4; }

  // Begin to multiply queries and keys.
  __device__ void begin_scores(int slot, int turn) {
    const uint64_t q = wgmma::descriptor(ptx::shared_address(shared.q[slot][0]) + side * 64 * 128, 0);
    const uint64_t keys = wgmma::descriptor(ptx::shared_address(shared.keys[turn % stages][0]), 0);
    wgmma::pin(scores);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < width / 16; ++step) {
      const int at = (step / 4 * block_bytes + step % 4 * 32) / 16;
      wgmma::multiply_n128(scores, q + at, keys + at, step > 0);
    }
    wgmma::commit();
  }

  // Begin to add weights times values.
  __device__ void begin_values(int turn) {
    const uint64_t values = wgmma::descriptor(ptx::shared_address(shared.values[turn % stages][0]), block_bytes);
    wgmma::pin(out);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < keys_per_tile / 16; ++step)
      wgmma::multiply_by_columns(out, *reinterpret_cast<uint32_t(*)[4]>(weights + step * 4), values + step * 128, true);
    wgmma::commit();
  }

  __device__ void release(uint64_t& empty) {
    if (lane() == 0) ptx::arrive(empty);
  }

  // Of the keys from `start` on, rows see those up to their own token's.
  __device__ void mask(const Item& item, int start) {
    if (start + keys_per_tile <= item.position + item.row / group + 1) return;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const int seen = item.position + (item.row + row(which)) / group + 1 - start;
#pragma unroll
      for (int i = 0; i < 32; ++i)
        if (i / 2 * 8 + lane() % 4 * 2 + i % 2 >= seen) scores[i / 2 * 4 + which * 2 + i % 2] = -INFINITY;
    }
  }

  // From scores to weights, of 2^8 at most: the base follows the largest score only where that is passed. What is far
  // above 1 is rounded as what is near it, and `out` seldom changes.
  __device__ void weigh() {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      float most = scores[which * 2];
#pragma unroll
      for (int i = 1; i < 32; ++i) most = fmaxf(most, scores[i / 2 * 4 + which * 2 + i % 2]);
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float next = most * p.scale > base[which] + 8 ? most * p.scale : base[which];
      const float finite = next == -INFINITY ? 0 : next;  // of a row that has seen nothing yet
      kept[which] = ptx::exp2(base[which] - finite);
      base[which] = next;
      sums[which] *= kept[which];
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        float& one = scores[i / 2 * 4 + which * 2 + i % 2];
        one = ptx::exp2(fmaf(one, p.scale, -finite));
        sums[which] += one;
      }
    }
  }

  __device__ void round_weights() {
#pragma unroll
    for (int i = 0; i < 32; ++i) weights[i] = ptx::pack_bf16(scores[i * 2], scores[i * 2 + 1]);
  }

  __device__ void shrink() {
#pragma unroll
    for (int i = 0; i < width / 2; ++i) out[i] *= kept[i / 2 % 2];
  }

  // Values past the end of the sequence become zeros: they weigh nothing, but nothing times what was left in the cache
  // may be no number.
  __device__ void clear_values(const Item& item, int start, int turn) {
    const int present = item.length - start;
    if (present >= keys_per_tile) return;
#pragma unroll 1
    for (int block = 0; block < column_blocks; ++block)
#pragma unroll 1
      for (int byte = present * 128 + threadIdx.x % consumers * 16; byte < block_bytes; byte += consumers * 16)
        *reinterpret_cast<int4*>(shared.values[turn % stages][block] + byte) = int4{};
    ptx::fence_async_shared();
    ptx::sync(cleared, consumers);
  }

  // All tiles of an item.
  __device__ void run(const Item& item, int slot, int& turn) {
    const int count = num_tiles(item);
#pragma unroll
    for (int i = 0; i < width / 2; ++i) out[i] = 0;
    for (int which = 0; which < 2; ++which) base[which] = -INFINITY, sums[which] = 0;
    if (!count) return;
    int start = item.begin + (count - 1) * keys_per_tile;
    ptx::wait(shared.keys_full[turn % stages], turn / stages % 2);
    begin_scores(slot, turn);
    wgmma::wait<0>();
    wgmma::pin(scores);
    release(shared.keys_empty[turn % stages]);
    mask(item, start);
    weigh();
    round_weights();
    ptx::wait(shared.values_full[turn % stages], turn / stages % 2);
    clear_values(item, start, turn);
    for (start -= keys_per_tile; start >= item.begin; start -= keys_per_tile, ++turn) {
      const int next = turn + 1;
      ptx::wait(shared.keys_full[next % stages], next / stages % 2);
      ptx::sync(side ? turn_right : turn_left, consumers);
      begin_scores(slot, next);
      ptx::wait(shared.values_full[turn % stages], turn / stages % 2);
      begin_values(turn);
      ptx::arrive(side ? turn_left : turn_right, consumers);
      wgmma::wait<1>();
      wgmma::pin(scores);
      release(shared.keys_empty[next % stages]);
      mask(item, start);
      weigh();
      wgmma::pin(scores);
      // In a branch, so that weights are made while the products go on: the assembler waits as early as a block lets
      // it.
      if (__any_sync(~0u, kept[0] != 1 || kept[1] != 1)) {
        wgmma::wait<0>();
        wgmma::pin(out);
        shrink();
      }
      wgmma::wait<0>();
      wgmma::pin(out);
      release(shared.values_empty[turn % stages]);
      round_weights();
    }
    ptx::wait(shared.values_full[turn % stages], turn / stages % 2);
    begin_values(turn);
    wgmma::wait<0>();
    wgmma::pin(out);
    release(shared.values_empty[turn % stages]);
    ++turn;
  }

  // Divide by the sums, and write the result, or a partial one.
  __device__ void finish(const Item& item, int slot) {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      sums[which] += __shfl_xor_sync(~0u, sums[which], 1);
      sums[which] += __shfl_xor_sync(~0u, sums[which], 2);
      kept[which] = sums[which] > 0 ? 1 / sums[which] : 0;
    }
    shrink();
    if (item.partial < 0)
      write(item, slot);
    else
      write_partial(item);
  }

  // Through the queries' memory, each warp its own rows, so that whole lines are written.
  __device__ void write(const Item& item, int slot) {
    Tile& turned = shared.q[slot];
    ptx::sync(side ? side_right : side_left, warpgroup);  // the scores of all its rows are computed
    const int matrix = lane() / 8, at = side * 64 + warp() * 16 + matrix % 2 * 8 + lane() % 8;
#pragma unroll
    for (int i = 0; i < width / 16; ++i) {
      const int chunk = i * 2 + matrix / 2;
      uint32_t four[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) four[k] = ptx::pack_bf16(out[i * 8 + k * 2], out[i * 8 + k * 2 + 1]);
      ptx::store_matrices(turned[chunk / 8] + at * 128 + (chunk % 8 ^ at % 8) * 16, four[0], four[1], four[2], four[3]);
    }
    __syncwarp();
    constexpr int chunks = width / 8, rows = 32 / chunks;  // of 16 bytes in a row; that a warp writes at a time
#pragma unroll
    for (int i = 0; i < 16; i += rows) {
      const int chunk = lane() % chunks, from = side * 64 + warp() * 16 + i + lane() / chunks, row = item.row + from;
      if (from < item.rows) {
        const int4 eight = *reinterpret_cast<const int4*>(turned[chunk / 8] + from * 128 + (chunk % 8 ^ from % 8) * 16);
        const size_t place = (static_cast<size_t>(item.token + row / group) * heads + item.head) * group + row % group;
        *reinterpret_cast<int4*>(p.out + place * width + chunk * 8) = eight;
      }
    }
  }

  __device__ void write_partial(const Item& item) {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      if (row(which) >= item.rows) continue;
      const size_t place = (static_cast<size_t>(item.partial) * heads + item.head) * rows_per_tile + row(which);
      if (lane() % 4 == 0) p.logarithms[place] = sums[which] > 0 ? base[which] + __log2f(sums[which]) : -INFINITY;
#pragma unroll
      for (int i = 0; i < width / 8; ++i)
        *reinterpret_cast<float2*>(p.partials + place * width + i * 8 + lane() % 4 * 2) = {out[i * 4 + which * 2],
                                                                                           out[i * 4 + which * 2 + 1]};
    }
  }
};

__device__ __forceinline__ void consume(Shared& shared, const Parameters& p, int side) {
  if (side) ptx::arrive(turn_left, consumers);  // the left one is the first
  Consumer consumer(shared, p, side);
  for (int count = 0, turn = 0;; ++count) {
    const int slot = count % 2;
    ptx::wait(shared.item_full[slot], count / 2 % 2);
    const Item item = shared.items[slot];
    if (!item.rows) break;
    consumer.run(item, slot, turn);
    consumer.finish(item, slot);
    ptx::fence_async_shared();
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::arrive(shared.item_empty[slot]);
  }
  if (!side) ptx::sync(turn_left, consumers);
}

}  // namespace

// counter: zero, left as zero.
extern "C" __global__ void __launch_bounds__(384, 1)
    attend(const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap cache, const int* work,
           const int* tables, const int* lengths, __nv_bfloat16* out, float* partials, float* logarithms, int* counter,
           int table_columns, int page_size, float scale) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Parameters p{work,       tables,  lengths,       out,       partials,
                     logarithms, counter, table_columns, page_size, scale * 1.4426950408889634f};
  ptx::let_next_begin();
  if (threadIdx.x == 0) {
    ptx::prefetch(queries);
    ptx::prefetch(cache);
    for (int slot = 0; slot < 2; ++slot) {
      ptx::init_barrier(shared.item_full[slot], 1);
      ptx::init_barrier(shared.item_empty[slot], consumers / 32 + 1);
    }
    for (int stage = 0; stage < stages; ++stage) {
      ptx::init_barrier(shared.keys_full[stage], 1);
      ptx::init_barrier(shared.values_full[stage], 1);
      ptx::init_barrier(shared.keys_empty[stage], consumers / 32);
      ptx::init_barrier(shared.values_empty[stage], consumers / 32);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  ptx::wait_for_launches();
  const int side = __shfl_sync(~0u, threadIdx.x / warpgroup, 0);
  if (side < 2) {
    ptx::take_registers<computing_registers>();
    consume(shared, p, side);
  } else {
    ptx::give_registers<moving_registers>();
    const int warp = threadIdx.x / 32 % 4;
    if (warp == 0) load_keys(shared, queries, cache, p);
    if (warp == 1) load_values(shared, cache, p);
  }
}
