// How long a step takes, learned from the steps that were: seconds = a + b * sequences + c * rows + d * tokens read.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "ids.hpp"

namespace tsrun {

// What a step's time depends on.
struct StepSize {
  std::int32_t num_sequences = 0;
  std::int32_t num_rows = 0;
  std::int64_t num_read = 0;  // cached tokens that attention reads
};

// Recursive least squares that forgets: a step of a hundred steps ago counts a third.
class StepTime {
 public:
  bool is_known() const { return num_seen_ >= min_seen; }

  void learn(const StepSize& size, Seconds took) {
    ++num_seen_;
    const Vector x = features(size);
    Vector px{};
    double denominator = forgetting;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) px[i] += covariance_[i][j] * x[j];
      denominator += x[i] * px[i];
    }
    const double error = took - dot(weights_, x);
    for (std::size_t i = 0; i < n; ++i) weights_[i] += px[i] / denominator * error;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        covariance_[i][j] = (covariance_[i][j] - px[i] * px[j] / denominator) / forgetting;
        // What was never varied is not known better by waiting, and must not grow without end.
        if (i == j) covariance_[i][j] = std::min(covariance_[i][j], prior);
      }
    }
  }

  Seconds predict(const StepSize& size) const { return std::max(0.0, dot(weights_, features(size))); }

  // The most rows with which a step of these sequences still takes no longer than `limit`; at least none.
  std::int32_t rows_within(StepSize size, Seconds limit, std::int32_t most) const {
    const double per_row = weights_[2] / scale[2];
    size.num_rows = 0;
    const double left = limit - dot(weights_, features(size));
    if (left <= 0) return 0;
    if (per_row <= 0 || left >= per_row * most) return most;
    return static_cast<std::int32_t>(left / per_row);
  }

 private:
  static constexpr std::size_t n = 4;
  using Vector = std::array<double, n>;
  static constexpr double forgetting = 0.99;
  static constexpr double prior = 1e6;
  static constexpr std::int32_t min_seen = 8;
  // Of one size, so that one prior suits all.
  static constexpr Vector scale{1, 64, 1024, 1e6};

  static Vector features(const StepSize& size) {
    return {1, size.num_sequences / scale[1], size.num_rows / scale[2], static_cast<double>(size.num_read) / scale[3]};
  }
  static double dot(const Vector& a, const Vector& b) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
  }

  Vector weights_{};
  std::array<Vector, n> covariance_{{{prior, 0, 0, 0}, {0, prior, 0, 0}, {0, 0, prior, 0}, {0, 0, 0, prior}}};
  std::int64_t num_seen_ = 0;
};

}  // namespace tsrun
