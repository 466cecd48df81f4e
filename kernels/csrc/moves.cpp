#include "moves.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <vector>

namespace tsk {
namespace {

// A row's vectors one after the other; `to` is contiguous.
void copy_row(const Tensor& from, std::int64_t row, std::byte* to) {
  const std::int64_t bytes = from.width() * element_bytes(from.dtype);
  const std::byte* source = from.data + row * from.strides[0] * element_bytes(from.dtype);
  for (std::int64_t v = 0; v < from.vectors(); ++v, to += bytes)
    std::memcpy(to, source + v * from.vector_stride() * element_bytes(from.dtype), bytes);
}

template <class Element>
void narrow_row(const Tensor& from, std::int64_t row, std::byte* to) {
  auto* codes = reinterpret_cast<e4m3*>(to);
  for (std::int64_t v = 0; v < from.vectors(); ++v, codes += from.width()) {
    const Element* source = from.at<const Element>(row) + v * from.vector_stride();
    for (std::int64_t e = 0; e < from.width(); ++e) narrow_to(widen(source[e]), codes + e);
  }
}

// A row into a cache of the same type, or of e4m3.
void append_row(const Tensor& from, std::int64_t row, const Tensor& cache, std::byte* to) {
  if (cache.dtype != DType::f8e4m3) return copy_row(from, row, to);
  if (from.dtype == DType::bf16) return narrow_row<bf16>(from, row, to);
  narrow_row<float>(from, row, to);
}

}  // namespace

// (ids, table; shard): ids outside of the table's rows give zeros.
void embedding(const Call& call, const Worker& worker) {
  const auto* ids = call.operands[0].at<const std::int32_t>();
  const Tensor& table = call.operands[1];
  const std::int64_t shard = static_cast<std::int64_t>(call.numbers[0]);
  const std::int64_t bytes = call.out.row_elements() * element_bytes(call.out.dtype);
  for (std::int64_t t = worker.first(call.out.rows()); t < worker.last(call.out.rows()); ++t) {
    const std::int64_t row = ids[t] - shard * table.rows();
    std::byte* to = call.out.data + t * bytes;
    if (row < 0 || row >= table.rows())
      std::memset(to, 0, bytes);
    else
      copy_row(table, row, to);
  }
}

// (x): a view to where it is wanted.
void copy_rows(const Call& call, const Worker& worker) {
  const std::int64_t bytes = call.out.row_elements() * element_bytes(call.out.dtype);
  for (std::int64_t t = worker.first(call.out.rows()); t < worker.last(call.out.rows()); ++t)
    copy_row(call.operands[0], t, call.out.data + t * bytes);
}

// (x, rows)
void take_rows(const Call& call, const Worker& worker) {
  const auto* rows = call.operands[1].at<const std::int32_t>();
  const std::int64_t bytes = call.out.row_elements() * element_bytes(call.out.dtype);
  for (std::int64_t s = worker.first(call.out.rows()); s < worker.last(call.out.rows()); ++s)
    copy_row(call.operands[0], rows[s], call.out.data + s * bytes);
}

// (cache [pages, page_size, 2, K, E], k, v [T, K, E], slots)
void cache_append(const Call& call, const Worker& worker) {
  const auto* slots = call.operands[3].at<const std::int32_t>();
  const Tensor& cache = call.operands[0];
  const std::int64_t row_bytes = cache.strides[1] * element_bytes(cache.dtype);
  for (std::int64_t t = worker.first(call.operands[3].rows()); t < worker.last(call.operands[3].rows()); ++t) {
    std::byte* row = cache.data + slots[t] * row_bytes;
    append_row(call.operands[1], t, cache, row);
    append_row(call.operands[2], t, cache, row + row_bytes / 2);
  }
}

// (cache [pages, page_size, C + R], latent [T, C], rotated [T, R], slots)
void latent_append(const Call& call, const Worker& worker) {
  const auto* slots = call.operands[3].at<const std::int32_t>();
  const Tensor& cache = call.operands[0];
  const std::int64_t row_bytes = cache.strides[1] * element_bytes(cache.dtype);
  const std::int64_t latent_bytes = call.operands[1].row_elements() * element_bytes(cache.dtype);
  for (std::int64_t t = worker.first(call.operands[3].rows()); t < worker.last(call.operands[3].rows()); ++t) {
    std::byte* row = cache.data + slots[t] * row_bytes;
    append_row(call.operands[1], t, cache, row);
    append_row(call.operands[2], t, cache, row + latent_bytes);
  }
}

// (x, positions; interleaved, magnitude), constants: radians a position.
void prepare_rope(Call& call) {
  using Key = std::pair<std::vector<float>, float>;
  static std::mutex lock;
  // A table that has been outgrown stays: another program may be reading it.
  static std::map<Key, std::vector<std::vector<float>>> grown;
  const auto magnitude = static_cast<float>(call.numbers[1]);
  const auto* positions = call.operands[1].at<const std::int32_t>();
  const std::int64_t count = call.operands[1].rows();
  const std::int64_t needed = count ? *std::max_element(positions, positions + count) + 1 : 1;
  const std::int64_t half = call.num_constants;
  const std::lock_guard<std::mutex> guard(lock);
  auto& tables = grown[Key({call.constants, call.constants + half}, magnitude)];
  if (tables.empty() || static_cast<std::int64_t>(tables.back().size()) < needed * 2 * half) {
    // To a power of two, so that growth stays rare while a sequence does.
    std::int64_t rows = 1024;
    while (rows < needed) rows *= 2;
    std::vector<float> table = tables.empty() ? std::vector<float>() : tables.back();
    std::int64_t position = static_cast<std::int64_t>(table.size()) / (2 * half);
    table.resize(rows * 2 * half);
    for (; position < rows; ++position)
      for (std::int64_t e = 0; e < half; ++e) {
        const double angle = static_cast<float>(position) * call.constants[e];
        table[position * 2 * half + e] = static_cast<float>(std::cos(angle)) * magnitude;
        table[position * 2 * half + half + e] = static_cast<float>(std::sin(angle)) * magnitude;
      }
    tables.push_back(std::move(table));
  }
  call.prepared = tables.back().data();
}

}  // namespace tsk
