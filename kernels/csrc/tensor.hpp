// What kernels compute on: raw addresses with sizes and strides, and the element types behind them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// Shared by files that are compiled for different instruction sets: never a function of its own, of which the linker
// would keep any.
#define TSK_INLINE __attribute__((always_inline)) inline

namespace tsk {

enum class DType : std::uint8_t { f32, bf16, i32, i64, u8 };

TSK_INLINE std::int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return 2;
    case DType::i64:
      return 8;
    case DType::u8:
      return 1;
    case DType::f32:
    case DType::i32:
      return 4;
  }
  return 0;
}

struct bf16 {
  std::uint16_t bits;
};

TSK_INLINE float widen(float x) { return x; }
TSK_INLINE float widen(bf16 x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// To the nearest, ties to even, as everything else that rounds to bf16 does.
TSK_INLINE bf16 round_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

TSK_INLINE void narrow_to(float x, float* to) { *to = x; }
TSK_INLINE void narrow_to(float x, bf16* to) { *to = round_bf16(x); }

constexpr int max_dims = 5;

// An operand of a kernel. Strides count elements; the last dimension is contiguous in everything that a program stores.
struct Tensor {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  int dims = 0;
  std::int64_t sizes[max_dims] = {};
  std::int64_t strides[max_dims] = {};

  template <class Element>
  TSK_INLINE Element* at(std::int64_t index = 0) const {
    return reinterpret_cast<Element*>(data) + (dims ? index * strides[0] : 0);
  }
  TSK_INLINE std::int64_t rows() const { return sizes[0]; }
  TSK_INLINE std::int64_t width() const { return sizes[dims - 1]; }
  // Of the dimensions between the rows and the last one, which must be evenly spaced: how many vectors of `width` a row
  // has.
  TSK_INLINE std::int64_t vectors() const {
    std::int64_t count = 1;
    for (int d = 1; d + 1 < dims; ++d) count *= sizes[d];
    return count;
  }
  TSK_INLINE std::int64_t vector_stride() const { return dims > 2 ? strides[dims - 2] : width(); }
  // Elements of a row where all its dimensions are one contiguous run.
  TSK_INLINE std::int64_t row_elements() const {
    std::int64_t count = 1;
    for (int d = 1; d < dims; ++d) count *= sizes[d];
    return count;
  }
};

}  // namespace tsk
