// The screened head: what it leaves out must not be among the largest.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
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

constexpr std::int64_t panel = 32;

// tskernels/screen.py: `pack_screen`.
Array screen_of(const Array& w) {
  const std::int64_t V = w.tensor().rows(), K = w.tensor().width(), quads = (K + 3) / 4,
                     panels = (V + panel - 1) / panel;
  const std::int64_t bytes = quads * 4 * panel + 3 * panel * 4;
  const Array screen(DType::u8, {panels * bytes});
  for (std::int64_t row = 0; row < panels * panel; ++row) {
    float most = 0;
    for (std::int64_t k = 0; row < V && k < K; ++k)
      most = std::max(most, std::fabs(static_cast<float>(w.at(row * K + k))));
    const float step = most / 127;
    double error = 0, norm = 0, whole = 0;
    for (std::int64_t k = 0; k < quads * 4; ++k) {
      const float value = row < V && k < K ? static_cast<float>(w.at(row * K + k)) : 0.0f;
      const float q = step > 0 ? std::nearbyint(value / step) : 0.0f;
      screen.raw<std::uint8_t>(row / panel * bytes + (k / 4 * panel + row % panel) * 4 + k % 4) =
          static_cast<std::uint8_t>(q + 128);
      const double kept = static_cast<double>(step) * q;
      error += (value - kept) * (value - kept);
      norm += kept * kept;
      whole += static_cast<double>(value) * value;
    }
    constexpr double above = 1 + 0x1p-23;
    const double margin = std::sqrt(error) + static_cast<double>(K + 16) * 0x1p-24 * std::sqrt(whole);
    const float facts[] = {step, row < V ? static_cast<float>(margin * above) : -std::numeric_limits<float>::infinity(),
                           static_cast<float>(std::sqrt(norm) * above)};
    for (int fact = 0; fact < 3; ++fact)
      std::memcpy(&screen.raw<std::uint8_t>(row / panel * bytes + quads * 4 * panel + (fact * panel + row % panel) * 4),
                  &facts[fact], sizeof(float));
  }
  return screen;
}

}  // namespace

TEST("a screened head leaves out nothing that is among the largest, and what it gives has the bits of linear") {
  std::int64_t num_left_out = 0;
  on_each_isa([&] {
    Random random(8);
    for (const DType dtype : float_types)
      for (const auto& [V, K] :
           std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {70, 33}, {333, 50}, {64, 16}})
        for (const std::int64_t tokens : {1, 2, 7}) {
          Array x = Array(dtype, {tokens, K}, 2).fill(random), w = Array(dtype, {V, K}).fill(random);
          for (std::int64_t row = 1; row < V; ++row) {
            const float factor = row % 17 == 0 ? 1e3f : row % 5 == 0 ? 1 : 1e-3f;
            for (std::int64_t k = 0; k < K; ++k)
              w.set(row * K + k, row % 7 == 0 ? static_cast<float>(w.at((row - 1) * K + k))  // the same row again
                                              : factor * random.next());
          }
          x.set(K / 2, 50);  // an outlier
          if (tokens > 1)
            for (std::int64_t k = 0; k < K; ++k) x.set(K + k, 0);
          const Array screen = screen_of(w), whole(dtype, {tokens, V});
          run("linear_rows", {&x, &w}, whole);
          for (const int keep : {0, 1, 5, 64, 65})
            for (int workers = 1; workers <= most_workers; ++workers) {
              const Array out(dtype, {tokens, V});
              const Array keeps = tests::integers(std::vector<std::int32_t>(tokens, keep), {tokens});
              run("screened_rows", {&x, &w, &screen, &keeps}, out, {}, workers);
              for (std::int64_t t = 0; t < tokens; ++t) {
                std::vector<double> sorted;
                for (std::int64_t v = 0; v < V; ++v) sorted.push_back(whole.at(t * V + v));
                std::sort(sorted.begin(), sorted.end(), std::greater<>());
                const bool all = keep == 0 || keep >= V;
                for (std::int64_t v = 0; v < V; ++v) {
                  const double given = out.at(t * V + v), wanted = whole.at(t * V + v);
                  const bool left_out = std::isinf(given);
                  CHECK(given == wanted || (left_out && given < 0));
                  CHECK(!left_out || (!all && wanted < sorted[keep - 1]));
                  num_left_out += left_out;
                }
              }
            }
        }
  });
  if (isa()) CHECK(num_left_out > 0);  // or the test shows nothing
}

TEST("max_index finds the first of the largest, and tells what is not finite") {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  on_each_isa([] {
    Random random(9);
    for (const DType dtype : float_types)
      for (const std::int64_t V : {1, 5, 64, 77, 131}) {
        Array x = Array(dtype, {6, V}, 3).fill(random);
        std::vector<std::int32_t> wanted(6, -1);
        const std::int32_t first = random.below(static_cast<std::int32_t>(V));
        for (const std::int64_t at : {static_cast<std::int64_t>(first), V - 1}) x.set(at, 2);
        wanted[0] = first;
        x.set(V + first, nan);
        x.set(2 * V + first, inf);
        for (std::int64_t v = 0; v < V; ++v) x.set(3 * V + v, -inf);
        for (std::int64_t v = 0; v < V; ++v) x.set(4 * V + v, v == first ? -5.0f : -inf);
        wanted[4] = first;
        for (std::int64_t v = 0; v < V; ++v) x.set(5 * V + v, -1);
        wanted[5] = 0;
        for (int workers = 1; workers <= most_workers; ++workers) {
          const Array out(DType::i32, {6});
          run("max_index", {&x}, out, {}, workers);
          for (std::int64_t row = 0; row < 6; ++row) CHECK(out.raw<std::int32_t>(row) == wanted[row]);
        }
      }
  });
}

}  // namespace tsk
