// Matrices that tensor cores read from shared memory, and their product.
#pragma once

#include <cstdint>
#include <vector>

#include "machine.hpp"

namespace ptx {

enum class Format : std::uint8_t { f16, bf16, e4m3, e5m2 };

inline std::uint32_t bytes_of(Format format) { return format == Format::f16 || format == Format::bf16 ? 2 : 1; }
float widen(Format format, std::uint64_t bits);

// What a descriptor says of an operand: `rows` of M or N by one instruction's K.
struct Machine::SharedMatrix {
  std::uint32_t start, leading, stride;  // bytes
  std::uint32_t swizzle;                 // bytes of its span, 0 for none
  bool mn_major;
  std::uint32_t rows, depth;
  Format format;
  std::uint32_t line;
  std::uint32_t first_row = 0;

  std::uint32_t address(std::uint32_t row, std::uint32_t k) const;
};

// sums[r, n] (+)= a[r, k] * b[n, k]; exact products, summed in f64.
void multiply(const float* a, const float* b, std::uint32_t rows, std::uint32_t columns, std::uint32_t depth,
              double* sums);

}  // namespace ptx
