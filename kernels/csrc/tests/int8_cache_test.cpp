// A cache in bytes against one of the floats that the bytes stand for, over pages of the heap that end where they end.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "arrays.hpp"
#include "check.hpp"

namespace tsk {
namespace {

using tests::Array;
using tests::float_types;
using tests::most_workers;
using tests::on_each_isa;
using tests::Random;
using tests::run;

// What a page of codes and scales has for a vector of a row.
struct Page {
  const Array& bytes;
  std::int64_t page_size, heads, width;

  std::int64_t page_bytes() const { return page_size * 2 * heads * (width + 4); }
  float scale(std::int64_t page, std::int64_t row, std::int64_t part, std::int64_t head) const {
    float found;
    const std::int64_t codes = page_size * 2 * heads * width;
    std::memcpy(&found, at(page) + codes + ((part * heads + head) * page_size + row) * 4, sizeof found);
    return found;
  }
  std::int8_t code(std::int64_t page, std::int64_t row, std::int64_t part, std::int64_t head, std::int64_t e) const {
    return static_cast<std::int8_t>(at(page)[((row * 2 + part) * heads + head) * width + e]);
  }

 private:
  const std::byte* at(std::int64_t page) const { return bytes.tensor().data + page * page_bytes(); }
};

TEST("a cache in bytes holds vectors to half a step, and attention reads it as the floats that it stands for") {
  on_each_isa([] {
    Random random(8);
    constexpr std::int64_t heads = 2, group = 3, page_size = 4, pages = 80, length = 309, now = 50;
    const Array spans = tests::integers({0, now}, {1, 2}), lengths = tests::integers({length}, {1});
    std::vector<std::int32_t> table, slots;
    for (std::int64_t page = 0; page < pages; ++page) table.push_back(static_cast<std::int32_t>(pages - 1 - page));
    for (std::int64_t key = 0; key < length; ++key)
      slots.push_back(table[key / page_size] * page_size + static_cast<std::int32_t>(key % page_size));
    const Array tables = tests::integers(table, {1, pages}), slots_T = tests::integers(slots, {length});
    for (const DType dtype : float_types)
      for (const std::int64_t E : {4, 22, 64}) {
        const Array k = Array(dtype, {length, heads, E}, 6).fill(random),
                    v = Array(dtype, {length, heads, E}).fill(random);
        const Array q = Array(dtype, {now, heads, group, E}).fill(random, 2);
        const Array bytes(DType::u8,
                          {pages, page_size, 2 * heads * (E + 4)});  // scales are NaN where nothing is written
        run("cache_append_int8", {&bytes, &k, &v, &slots_T}, bytes, {}, 2);
        const Page kept{bytes, page_size, heads, E};
        Array wide(DType::f32, {pages, page_size, 2, heads, E});
        for (std::int64_t key = 0; key < length; ++key)
          for (std::int64_t part = 0; part < 2; ++part)
            for (std::int64_t head = 0; head < heads; ++head)
              for (std::int64_t e = 0; e < E; ++e) {
                const std::int64_t page = table[key / page_size], row = key % page_size;
                const double scale = kept.scale(page, row, part, head);
                const double value = kept.code(page, row, part, head, e) * scale;
                CHECK(std::fabs(value - (part ? v : k).at((key * heads + head) * E + e)) <= scale * 0.5001);
                wide.set((((page * page_size + row) * 2 + part) * heads + head) * E + e, static_cast<float>(value));
              }
        Array wide_q(DType::f32, {now, heads, group, E});
        for (std::int64_t i = 0; i < q.size(); ++i) wide_q.set(i, static_cast<float>(q.at(i)));
        for (const double window : {0.0, 6.0})
          for (int workers = 1; workers <= most_workers; ++workers) {
            const Array found(dtype, {now, heads, group, E}), wanted(DType::f32, {now, heads, group, E});
            const std::initializer_list<double> numbers = {0, 0.4, window, 2.0};
            run("attention_int8", {&q, &bytes, &spans, &lengths, &tables}, found, numbers, workers);
            run("attention", {&wide_q, &wide, &spans, &lengths, &tables}, wanted, numbers, workers);
            for (std::int64_t i = 0; i < found.size(); ++i) CHECK_CLOSE(found, i, wanted.at(i));
          }
      }
  });
}

}  // namespace
}  // namespace tsk
