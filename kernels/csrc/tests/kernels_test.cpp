// Kernels on small random operands against plain loops in double.
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "arrays.hpp"
#include "check.hpp"
#include "panels_of.hpp"

namespace tsk {
namespace {

using tests::Array;
using tests::float_types;
using tests::in_gated_panels;
using tests::in_panels;
using tests::most_workers;
using tests::on_each_isa;
using tests::Random;
using tests::run;

double product(const Array& x, std::int64_t row, const Array& w, std::int64_t output) {
  const std::int64_t K = w.tensor().width();
  double sum = 0;
  for (std::int64_t k = 0; k < K; ++k) sum += x.at(row * K + k) * w.at(output * K + k);
  return sum;
}

double activated(int activation, double x) {
  if (activation == 0) return x / (1 + std::exp(-x));
  if (activation == 1) return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

struct LinearSizes {
  std::int64_t rows, K, outputs;
};
const std::vector<LinearSizes> linear_sizes = {{1, 1, 1},   {1, 64, 96},  {2, 7, 33},  {5, 31, 64},
                                               {7, 40, 70}, {13, 33, 31}, {25, 16, 5}, {40, 65, 100}};

}  // namespace

TEST("linear by rows and by panels are products, with and without a bias") {
  on_each_isa([] {
    Random random(1);
    for (const DType dtype : float_types)
      for (const auto& [rows, K, outputs] : linear_sizes)
        for (const std::int64_t apart : {0, 5}) {
          const Array x = Array(dtype, {rows, K}, apart).fill(random);
          const Array w = Array(dtype, {outputs, K}).fill(random, 1 / std::sqrt(static_cast<float>(K)));
          const Array bias = Array(dtype, {outputs}).fill(random), panels = in_panels(w);
          for (int workers = 1; workers <= most_workers; ++workers)
            for (const bool by_panels : {false, true}) {
              const char* name = by_panels ? "linear_panels" : "linear_rows";
              const Array& weight = by_panels ? panels : w;
              const Array out(dtype, {rows, outputs}), plus(dtype, {rows, outputs});
              run(name, {&x, &weight}, out, {}, workers);
              run(name, {&x, &weight, &bias}, plus, {}, workers);
              for (std::int64_t i = 0; i < out.size(); ++i) {
                const double wanted = product(x, i / outputs, w, i % outputs);
                CHECK_CLOSE(out, i, wanted);
                CHECK_CLOSE(plus, i, wanted + bias.at(i % outputs));
              }
            }
        }
  });
}

TEST("gated panels are the activation of one half times the other") {
  on_each_isa([] {
    Random random(2);
    for (const DType dtype : float_types)
      for (const auto& [rows, K, outputs] : linear_sizes) {
        const Array x = Array(dtype, {rows, K}, 3).fill(random);
        const Array w = Array(dtype, {2 * outputs, K}).fill(random, 1 / std::sqrt(static_cast<float>(K)));
        const Array panels = in_gated_panels(w);
        for (int workers = 1; workers <= most_workers; ++workers)
          for (int activation = 0; activation < 3; ++activation) {
            const Array out(dtype, {rows, outputs});
            run("gated_panels", {&x, &panels}, out, {static_cast<double>(activation)}, workers);
            for (std::int64_t i = 0; i < out.size(); ++i) {
              const std::int64_t row = i / outputs, column = i % outputs;
              CHECK_CLOSE(out, i,
                          activated(activation, product(x, row, w, column)) * product(x, row, w, outputs + column));
            }
          }
      }
  });
}

TEST("a row has the same bits in any batch and with any number of workers") {
  on_each_isa([] {
    Random random(3);
    for (const DType dtype : float_types) {
      constexpr std::int64_t rows = 40, K = 45, outputs = 75;
      const Array x = Array(dtype, {rows, K}).fill(random), w = Array(dtype, {2 * outputs, K}).fill(random);
      const Array panels = in_panels(w), gated = in_gated_panels(w);
      const auto check = [&](const char* name, const Array& weight, std::int64_t width) {
        const Array whole(dtype, {rows, width});
        run(name, {&x, &weight}, whole, {0});
        for (std::int64_t some = 1; some <= rows; ++some) {
          const Array out(dtype, {some, width});
          Array part(dtype, {some, K});
          for (std::int64_t i = 0; i < part.size(); ++i) part.set(i, static_cast<float>(x.at(i)));
          run(name, {&part, &weight}, out, {0}, static_cast<int>(1 + some % most_workers));
          for (std::int64_t i = 0; i < out.size(); ++i) CHECK(out.at(i) == whole.at(i));
        }
      };
      check("linear_rows", w, 2 * outputs);
      check("linear_panels", panels, 2 * outputs);
      check("gated_panels", gated, outputs);
    }
  });
}

TEST("rms_norm divides each vector by its root mean square") {
  on_each_isa([] {
    Random random(4);
    for (const DType dtype : float_types)
      for (const std::int64_t width : {1, 7, 16, 40, 129})
        for (const double offset : {0.0, 1.0}) {
          const Array x = Array(dtype, {5, 3, width}, 7).fill(random, 3), gain = Array(dtype, {width}).fill(random);
          for (int workers = 1; workers <= most_workers; ++workers) {
            const Array out(dtype, {5, 3, width});
            run("rms_norm", {&x, &gain}, out, {1e-5, offset}, workers);
            for (std::int64_t v = 0; v < 15; ++v) {
              double squares = 0;
              for (std::int64_t e = 0; e < width; ++e) squares += x.at(v * width + e) * x.at(v * width + e);
              const double inverse = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
              for (std::int64_t e = 0; e < width; ++e)
                CHECK_CLOSE(out, v * width + e, x.at(v * width + e) * inverse * (gain.at(e) + offset));
            }
          }
        }
  });
}

TEST("rope turns pairs by their position, halves or neighbours, and leaves what comes after them") {
  on_each_isa([] {
    Random random(5);
    const Array positions = tests::integers({0, 1, 1023, 1024, 99999}, {5});
    for (const DType dtype : float_types)
      for (const std::int64_t half : {1, 4, 8, 19, 40})
        for (const bool interleaved : {false, true}) {
          const std::int64_t rest = half % 3 * 2, width = 2 * half + rest;
          const Array x = Array(dtype, {5, 2, width}, 4).fill(random);
          std::vector<float> frequencies(half);
          for (std::int64_t e = 0; e < half; ++e)
            frequencies[e] = static_cast<float>(std::pow(1000.0, -static_cast<double>(e) / static_cast<double>(half)));
          for (int workers = 1; workers <= most_workers; ++workers) {
            const Array out(dtype, {5, 2, width});
            run("rope", {&x, &positions}, out, {interleaved ? 1.0 : 0.0, 1.25}, workers, frequencies);
            for (std::int64_t v = 0; v < 10; ++v)
              for (std::int64_t e = 0; e < half; ++e) {
                const std::int64_t first = v * width + (interleaved ? 2 * e : e);
                const std::int64_t second = v * width + (interleaved ? 2 * e + 1 : half + e);
                // the angle itself is an f32
                const double angle = static_cast<float>(positions.raw<std::int32_t>(v / 2)) * frequencies[e];
                const double cosine = 1.25 * std::cos(angle), sine = 1.25 * std::sin(angle);
                CHECK_CLOSE(out, first, x.at(first) * cosine - x.at(second) * sine);
                CHECK_CLOSE(out, second, x.at(second) * cosine + x.at(first) * sine);
                for (std::int64_t k = width - rest; k < width; ++k)
                  CHECK_CLOSE(out, v * width + k, x.at(v * width + k));
              }
          }
        }
  });
}

TEST("attention sees a sequence's keys through its table, within the window, and no more of the cache than it may") {
  struct Sequence {
    std::int32_t before, now;
  };
  on_each_isa([] {
    Random random(6);
    constexpr std::int64_t key_heads = 2, group = 3, page_size = 4;
    const std::vector<Sequence> sequences = {{0, 5}, {7, 1}, {301, 2}, {0, 1}, {250, 50}};
    std::vector<std::int32_t> spans, lengths, tables;
    std::int32_t tokens = 0, num_pages = 0;
    constexpr std::int64_t columns = 76;
    for (const auto& [before, now] : sequences) {
      spans.insert(spans.end(), {tokens, tokens + now});
      lengths.push_back(before + now);
      tokens += now;
      for (std::int64_t page = 0; page < columns; ++page)
        tables.push_back(page * page_size < lengths.back() ? num_pages++ : 1 << 30);
    }
    for (std::int32_t& page : tables)  // from the last page of the cache on, so that no page is followed by the next
      if (page < num_pages) page = num_pages - 1 - page;
    const auto count = static_cast<std::int64_t>(sequences.size());
    const Array spans_S2 = tests::integers(spans, {count, 2}), lengths_S = tests::integers(lengths, {count});
    const Array tables_SP = tests::integers(tables, {count, columns});
    for (const DType dtype : float_types)
      for (const std::int64_t E : {4, 20, 33}) {
        const Array q = Array(dtype, {tokens, key_heads, group, E}, 8).fill(random, 2);
        Array cache(dtype, {num_pages, page_size, 2, key_heads, E});
        const auto place = [&](std::int64_t s, std::int64_t key, std::int64_t part, std::int64_t head) {
          const std::int64_t page = tables[s * columns + key / page_size];
          return (((page * page_size + key % page_size) * 2 + part) * key_heads + head) * E;
        };
        for (std::int64_t s = 0; s < count; ++s)
          for (std::int64_t key = 0; key < lengths[s]; ++key)
            for (std::int64_t part = 0; part < 2; ++part)
              for (std::int64_t i = 0; i < key_heads * E; ++i)
                cache.set(place(s, key, part, 0) + i, random.next());  // NaN after the last key
        for (const std::int64_t window : {0, 6})
          for (const double softcap : {0.0, 2.0}) {
            const double scale = 0.4;
            std::vector<Array> results;
            for (int workers = 1; workers <= most_workers; ++workers) {
              results.emplace_back(dtype, tests::Sizes{tokens, key_heads, group, E});
              run("attention", {&q, &cache, &spans_S2, &lengths_S, &tables_SP}, results.back(),
                  {0, scale, static_cast<double>(window), softcap}, workers);
              CHECK(results.back().same_bits(results.front()));
            }
            for (std::int64_t s = 0; s < count; ++s)
              for (std::int64_t row = 0; row < sequences[s].now * key_heads * group; ++row) {
                const std::int64_t token = row / (key_heads * group), head = row / group % key_heads;
                const std::int64_t query = (spans[2 * s] * key_heads * group + row) * E;
                const std::int64_t end = sequences[s].before + token + 1;
                const std::int64_t begin = window && end > window ? end - window : 0;
                std::vector<double> weights;
                for (std::int64_t key = begin; key < end; ++key) {
                  double score = 0;
                  for (std::int64_t e = 0; e < E; ++e) score += q.at(query + e) * cache.at(place(s, key, 0, head) + e);
                  score *= scale;
                  weights.push_back(std::exp(softcap ? softcap * std::tanh(score / softcap) : score));
                }
                const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
                for (std::int64_t e = 0; e < E; ++e) {
                  double wanted = 0;
                  for (std::int64_t key = begin; key < end; ++key)
                    wanted += weights[key - begin] / total * cache.at(place(s, key, 1, head) + e);
                  CHECK_CLOSE(results.front(), query + e, wanted);
                }
              }
          }
      }
  });
}

TEST("cache_append and take_rows move whole rows of joint products") {
  on_each_isa([] {
    Random random(7);
    for (const DType dtype : float_types)
      for (int workers = 1; workers <= most_workers; ++workers) {
        const Array k = Array(dtype, {5, 2, 9}, 18).fill(random), v = Array(dtype, {5, 2, 9}, 3).fill(random);
        Array cache(dtype, {3, 4, 2, 2, 9});
        const Array slots = tests::integers({11, 0, 5, 4, 7}, {5});
        run("cache_append", {&cache, &k, &v, &slots}, cache, {}, workers);
        const Array rows = tests::integers({4, 4, 0}, {3}), out(dtype, {3, 2, 9});
        run("take_rows", {&k, &rows}, out, {}, workers);
        for (std::int64_t i = 0; i < k.size(); ++i) {
          const std::int64_t at = slots.raw<std::int32_t>(i / 18) * 36 + i % 18;
          CHECK(cache.at(at) == k.at(i) && cache.at(at + 18) == v.at(i));
        }
        for (std::int64_t i = 0; i < out.size(); ++i)
          CHECK(out.at(i) == k.at(rows.raw<std::int32_t>(i / 18) * 18 + i % 18));
        CHECK(std::isnan(cache.at(36)));
      }
  });
}

}  // namespace tsk
