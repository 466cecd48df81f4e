// What kernels compute on: raw addresses with sizes and strides, and the element types behind them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// Shared by files that are compiled for different instruction sets: never a function of its own, of which the linker
// would keep any.
#define TSK_INLINE __attribute__((always_inline)) inline

namespace tsk {

enum class DType : std::uint8_t { f32, bf16, i32, i64, u8, f8e4m3 };

TSK_INLINE std::int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return 2;
    case DType::i64:
      return 8;
    case DType::u8:
    case DType::f8e4m3:
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

struct e4m3 {
  std::uint8_t bits;
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

// To the nearest, ties to even; what is larger than 448 becomes that, infinities too, and NaN stays NaN.
TSK_INLINE e4m3 round_e4m3(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::uint32_t sign = bits >> 24 & 0x80;
  bits &= 0x7fffffff;
  std::uint32_t code;
  if (bits > 0x7f800000) {
    code = 0x7f;
  } else if (bits >= 0x43e00000) {  // 448
    code = 0x7e;
  } else if (bits < 0x3c800000) {  // 2^-6: from here down a step is 2^-9, as it is of f32 from 2^14 on
    float size;
    std::memcpy(&size, &bits, sizeof size);
    size += 0x1p14f;
    std::memcpy(&code, &size, sizeof code);
    code &= 0xf;
  } else {
    code = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
  }
  return {static_cast<std::uint8_t>(sign | code)};
}

TSK_INLINE void narrow_to(float x, float* to) { *to = x; }
TSK_INLINE void narrow_to(float x, bf16* to) { *to = round_bf16(x); }
TSK_INLINE void narrow_to(float x, e4m3* to) { *to = round_e4m3(x); }

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
