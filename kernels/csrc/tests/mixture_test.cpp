// Mixtures of experts and batched products on small random operands against plain loops in double.
#include <cmath>
#include <cstdint>
#include <vector>

#include "arrays.hpp"
#include "check.hpp"
#include "panels_of.hpp"

namespace tsk {
namespace {

using tests::Array;
using tests::float_types;
using tests::in_stacked_panels;
using tests::most_workers;
using tests::on_each_isa;
using tests::Random;
using tests::run;

struct Sizes {
  std::int64_t N, D, F;
};

double product(const Array& x, std::int64_t x_row, const Array& w, std::int64_t w_row) {
  const std::int64_t K = w.tensor().width();
  double sum = 0;
  for (std::int64_t k = 0; k < K; ++k) sum += x.at(x_row * K + k) * w.at(w_row * K + k);
  return sum;
}

TEST("experts run on the tokens that have a weight for them, in any number of workers") {
  on_each_isa([] {
    Random random(11);
    for (const DType dtype : float_types)
      for (const std::int64_t T : {1, 2, 13, 120})
        for (const auto& [N, D, F] : std::vector<Sizes>{{1, 7, 3}, {5, 33, 40}, {6, 40, 65}}) {
          const float of_D = 1 / std::sqrt(static_cast<float>(D)), of_F = 1 / std::sqrt(static_cast<float>(F));
          const Array x = Array(dtype, {T, D}, 9).fill(random);
          const Array gate = Array(dtype, {N * F, D}).fill(random, of_D),
                      up = Array(dtype, {N * F, D}).fill(random, of_D);
          const Array down = Array(dtype, {N * D, F}).fill(random, of_F);
          Array weights(dtype, {T, N}, 3);
          for (std::int64_t i = 0; i < weights.size(); ++i)  // the first expert has all tokens, the last one few
            weights.set(i, random.below(8) < 8 - i % N ? random.next() : 0.0f);
          const Array gates = in_stacked_panels(gate, N), ups = in_stacked_panels(up, N),
                      downs = in_stacked_panels(down, N);
          std::vector<Array> results;
          for (int workers = 1; workers <= most_workers; ++workers) {
            results.emplace_back(dtype, tests::Sizes{T, D});
            run("experts_panels", {&x, &weights, &gates, &ups, &downs}, results.back(), {1, 0, 0}, workers);
            CHECK(results.back().same_bits(results.front()));
          }
          for (std::int64_t t = 0; t < T; ++t) {
            std::vector<double> wanted(D);
            for (std::int64_t n = 0; n < N; ++n)
              for (std::int64_t f = 0; f < F; ++f) {
                const double g = product(x, t, gate, n * F + f), u = product(x, t, up, n * F + f);
                const double inner = weights.at(t * N + n) * g / (1 + std::exp(-g)) * u;
                for (std::int64_t d = 0; d < D; ++d) wanted[d] += inner * down.at((n * D + d) * F + f);
              }
            for (std::int64_t d = 0; d < D; ++d) CHECK_CLOSE(results.front(), t * D + d, wanted[d]);
          }
        }
  });
}

TEST("route keeps the largest experts of the best groups, of equals the first") {
  on_each_isa([] {
    for (const DType dtype : float_types) {
      // Groups of three; scores are sigmoids. Of the groups the second and third have the largest pairs.
      Array logits(dtype, {2, 9}, 5), bias(DType::f32, {9});
      const float given[] = {3, -9, -9, 1, 1, 1, 0, 2, 2};
      for (std::int64_t i = 0; i < 18; ++i) logits.set(i, given[i % 9]);
      for (std::int64_t n = 0; n < 9; ++n) bias.set(n, n == 6 ? 1.0f : 0.0f);
      const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
      for (int workers = 1; workers <= most_workers; ++workers) {
        const Array out(dtype, {2, 9});
        run("route", {&logits, &bias}, out, {4, 1, 1, 2.5, 3, 2, 2}, workers);
        const double total = sigmoid(0) + 2 * sigmoid(2) + sigmoid(1);
        const double wanted[] = {0, 0, 0, sigmoid(1), 0, 0, sigmoid(0), sigmoid(2), sigmoid(2)};
        for (std::int64_t i = 0; i < 18; ++i) CHECK_CLOSE(out, i, 2.5 * wanted[i % 9] / total);
      }
    }
  });
}

TEST("einsum is a product for each head, whichever dimension of y is summed over") {
  on_each_isa([] {
    Random random(12);
    for (const DType dtype : float_types)
      for (const std::int64_t T : {1, 5, 30})
        for (const std::int64_t E : {1, 18, 40})
          for (const std::int64_t C : {3, 32, 45, 150}) {
            constexpr std::int64_t H = 3;
            const float scale = 1 / std::sqrt(static_cast<float>(E));
            const Array x = Array(dtype, {T, H, E}, 7).fill(random);
            const Array hec = Array(dtype, {H, E, C}, 4).fill(random, scale);
            Array hce(dtype, {H, C, E}, 6);
            for (std::int64_t i = 0; i < hec.size(); ++i)
              hce.set((i / (E * C) * C + i % C) * E + i / C % E, static_cast<float>(hec.at(i)));
            for (int workers = 1; workers <= most_workers; ++workers) {
              const Array columns(dtype, {T, H, C}), rows(dtype, {T, H, C});
              run("einsum", {&x, &hec}, columns, {1, 0, 0, 2, 1, 1, 0}, workers);
              run("einsum", {&x, &hce}, rows, {1, 0, 0, 1, 2, 1, 0}, workers);
              for (std::int64_t i = 0; i < columns.size(); ++i) {
                const std::int64_t t = i / (H * C), h = i / C % H, c = i % C;
                double wanted = 0;
                for (std::int64_t e = 0; e < E; ++e) wanted += x.at((t * H + h) * E + e) * hec.at((h * E + e) * C + c);
                CHECK_CLOSE(columns, i, wanted);
                CHECK_CLOSE(rows, i, wanted);
              }
            }
          }
  });
}

}  // namespace
}  // namespace tsk
