// Floats of 16 and 8 bits: to f32 exactly, and back rounded to the nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace ptx {

inline float f32(std::uint64_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits)); }
inline std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }

// A float of `exponent` and `mantissa` bits below a sign. With infinities, or all but one code finite (e4m3).
template <int exponent, int mantissa, bool infinities>
struct Small {
  static constexpr int bias = (1 << (exponent - 1)) - 1;
  static constexpr std::uint32_t sign = 1u << (exponent + mantissa), magnitude = sign - 1;
  static constexpr std::uint32_t infinity = ((1u << exponent) - 1) << mantissa;
  static constexpr std::uint32_t nan = infinities ? infinity | 1u << (mantissa - 1) : magnitude;
  static constexpr std::uint32_t largest = infinities ? infinity - 1 : magnitude - 1;

  static float widen(std::uint32_t x) {
    const std::uint32_t m = x & magnitude, fraction = m & ((1u << mantissa) - 1), e = m >> mantissa;
    float value;
    if (infinities ? m > infinity : m == magnitude)
      value = std::bit_cast<float>(0x7fc00000u);
    else if (infinities && m == infinity)
      value = HUGE_VALF;
    else if (e == 0)
      value = std::ldexp(static_cast<float>(fraction), 1 - bias - mantissa);
    else
      value = std::ldexp(static_cast<float>(fraction | 1u << mantissa), static_cast<int>(e) - bias - mantissa);
    return x & sign ? -value : value;
  }

  static std::uint32_t round(double x, bool saturate) {
    const std::uint32_t s = std::signbit(x) ? sign : 0;
    const double a = std::fabs(x);
    if (std::isnan(x)) return nan;
    if (a == 0) return s;
    int e;
    std::frexp(a, &e);
    const int unit = std::max(e - 1, 1 - bias) - mantissa;  // the exponent of the last place
    const double rounded = std::ldexp(std::nearbyint(std::ldexp(a, -unit)), unit);
    if (rounded > static_cast<double>(widen(largest))) return s | (saturate ? largest : infinities ? infinity : nan);
    std::frexp(rounded, &e);
    if (rounded == 0) return s;
    const int biased = std::max(e - 1 + bias, 0);
    if (biased == 0) return s | static_cast<std::uint32_t>(std::ldexp(rounded, bias - 1 + mantissa));
    const auto whole = static_cast<std::uint32_t>(std::ldexp(rounded, mantissa - (e - 1)));
    return s | static_cast<std::uint32_t>(biased) << mantissa | (whole - (1u << mantissa));
  }
};

using E4M3 = Small<4, 3, false>;
using E5M2 = Small<5, 2, true>;
using F16 = Small<5, 10, true>;

inline float from_bf16(std::uint64_t x) { return f32((x & 0xffff) << 16); }
inline float from_f16(std::uint64_t x) {
  const std::uint32_t h = x & 0xffff, e = h >> 10 & 31;
  if (e == 0 || e == 31) return F16::widen(h);
  return f32((h & 0x8000) << 16 | (((h & 0x7fff) << 13) + (112u << 23)));
}
inline std::uint32_t to_bf16(float x) {
  const std::uint32_t u = bits(x);
  if (std::isnan(x)) return 0x7fff;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
inline std::uint32_t to_f16(float x) { return F16::round(x, false); }

}  // namespace ptx
