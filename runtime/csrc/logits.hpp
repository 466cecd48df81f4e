// A row of logits, read where the program left it: in blocks of f32, whatever it is stored in.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace tsrun {

inline constexpr std::int64_t block_size = 128;

// A block's numbers, and what else there is one of for each.
template <class Number>
struct alignas(64) Block {
  Number of[block_size];
};

enum class LogitType { f32, bf16, f16, f64 };

constexpr std::size_t size_of(LogitType type) {
  switch (type) {
    case LogitType::bf16:
    case LogitType::f16:
      return 2;
    case LogitType::f32:
      return 4;
    case LogitType::f64:
      return 8;
  }
  __builtin_unreachable();
}

inline float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

inline float from_f16(std::uint16_t bits) {
  const std::uint32_t magnitude = bits & 0x7FFFu, sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t wider = (112u << 23) + (magnitude >= 0x7C00u ? 112u << 23 : 0u);  // inf and NaN have the last one
  const float normal = std::bit_cast<float>((magnitude << 13) + wider);
  const float value = magnitude < 0x400u ? static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f : normal;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
}

class Logits {
 public:
  Logits(const void* data, LogitType type, std::int64_t width) : data_(data), type_(type), width_(width) {}

  std::int64_t width() const { return width_; }
  std::int64_t num_blocks() const { return (width_ + block_size - 1) / block_size; }

  // Those of a block, from id `block * block_size` on; past the last id they are -inf. In `room`, if not where they
  // lie.
  const float* block(std::int64_t block, Block<float>& room) const {
    const std::int64_t first = block * block_size, count = std::min(block_size, width_ - first);
    switch (type_) {
      case LogitType::f32:
        if (count == block_size) return static_cast<const float*>(data_) + first;
        return widen<float>(first, count, room, [](float value) { return value; });
      case LogitType::bf16:
        return widen<std::uint16_t>(first, count, room, [](std::uint16_t bits) { return from_bf16(bits); });
      case LogitType::f16:
        return widen<std::uint16_t>(first, count, room, [](std::uint16_t bits) { return from_f16(bits); });
      case LogitType::f64:
        return widen<double>(first, count, room, [](double value) { return static_cast<float>(value); });
    }
    __builtin_unreachable();
  }

 private:
  template <class Stored, class Wider>
  const float* widen(std::int64_t first, std::int64_t count, Block<float>& room, Wider wider) const {
    const Stored* stored = static_cast<const Stored*>(data_) + first;
    for (std::int64_t i = 0; i < count; ++i) room.of[i] = wider(stored[i]);
    std::fill(room.of + count, room.of + block_size, -std::numeric_limits<float>::infinity());
    return room.of;
  }

  const void* data_;
  LogitType type_;
  std::int64_t width_;
};

}  // namespace tsrun
