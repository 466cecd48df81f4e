#include "logit_blocks.hpp"

#include <bit>

// Compiled for each instruction set, and chosen when the module is loaded. All give the same bits: they differ in how
// many elements they take at once, not in the order of a sum, and no product is fused with one (CMakeLists.txt).
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define TSRUN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define TSRUN_CLONES
#endif

namespace tsrun {

TSRUN_CLONES float maximum_of(const float* logits, bool& has_nan) {
  constexpr int lanes = 32;
  float most[lanes];
  std::int32_t nan[lanes] = {};
  for (float& some : most) some = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < block_size; i += lanes)
    for (int lane = 0; lane < lanes; ++lane) {
      const float logit = logits[i + lane];
      most[lane] = logit > most[lane] ? logit : most[lane];
      nan[lane] |= logit != logit;
    }
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) {
      most[lane] = most[lane + half] > most[lane] ? most[lane + half] : most[lane];
      nan[lane] |= nan[lane + half];
    }
  has_nan |= nan[0] != 0;
  return most[0];
}

TSRUN_CLONES void weigh(const float* logits, const Weighing& weighing, Block<float>& weights) {
  const auto [largest, inverse_temperature, least_logit, least_weight] = weighing;
  constexpr float smallest = -87;      // of exponents whose exp is a normal number
  constexpr float rounder = 0x1.8p23;  // a sum with it has no fraction, and its last bits are the integer
  for (std::int64_t i = 0; i < block_size; ++i) {
    const float exponent = (logits[i] - largest) * inverse_temperature;
    const float x = exponent > smallest ? exponent : smallest;
    const float shifted = x * 1.44269504f + rounder;
    const float n = shifted - rounder;
    // ln 2 in two parts, so that n * ln 2 is exact where it matters.
    const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = (p * r) * r + r + 1.0f;
    const float weight = p * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) + 127) << 23);
    const bool counts = (logits[i] >= least_logit) & (exponent >= smallest) & (weight >= least_weight);
    weights.of[i] = counts ? weight : 0;
  }
}

TSRUN_CLONES double sum_of(const Block<float>& weights) {
  constexpr int lanes = 16;
  double sums[lanes] = {};
  for (std::int64_t i = 0; i < block_size; i += lanes)
    for (int lane = 0; lane < lanes; ++lane) sums[lane] += weights.of[i + lane];
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

TSRUN_CLONES void levels_of(const float* logits, const Weighing& weighing, Block<std::int32_t>& levels) {
  const Weighing copy = weighing;
  for (std::int64_t i = 0; i < block_size; ++i) levels.of[i] = level_of(logits[i], copy);
}

}  // namespace tsrun
