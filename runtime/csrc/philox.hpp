// Random numbers that a key and a counter decide: Philox4x64-10 of Salmon and others, "Parallel random numbers: as easy
// as 1, 2, 3", with the bits of NumPy's.
#pragma once

#include <array>
#include <cstdint>

namespace tsrun {

using PhiloxWords = std::array<std::uint64_t, 4>;

__extension__ typedef unsigned __int128 Product;

inline PhiloxWords philox(PhiloxWords counter, std::uint64_t key, std::uint64_t high_key = 0) {
  for (int round = 0; round < 10; ++round) {
    const Product first = static_cast<Product>(counter[0]) * 0xD2E7470EE14C6C93u;
    const Product third = static_cast<Product>(counter[2]) * 0xCA5A826395121157u;
    counter = {static_cast<std::uint64_t>(third >> 64) ^ counter[1] ^ key, static_cast<std::uint64_t>(third),
               static_cast<std::uint64_t>(first >> 64) ^ counter[3] ^ high_key, static_cast<std::uint64_t>(first)};
    key += 0x9E3779B97F4A7C15u;
    high_key += 0xBB67AE8584CAA73Bu;
  }
  return counter;
}

// In [0, 1): numpy.random.Generator(numpy.random.Philox(key=seed, counter=position)).random().
inline double uniform(std::uint64_t seed, std::uint64_t position) {
  const std::uint64_t carry = position == UINT64_MAX;
  const PhiloxWords words = philox({position + 1, carry, 0, 0}, seed);  // NumPy counts before it draws
  return static_cast<double>(words[0] >> 11) * 0x1p-53;
}

}  // namespace tsrun
