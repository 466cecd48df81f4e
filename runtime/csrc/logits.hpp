// A row of logits, read where the program left it: in blocks of f32, whatever it is stored in. What a request changes
// of its row is laid over it; the row itself stays.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

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

// Of the bits that say for a row's ids whether they are allowed: as many as whole blocks have.
inline constexpr int word_bits = 32;
constexpr std::int64_t words_of(std::int64_t width) {
  return (width + block_size - 1) / block_size * (block_size / word_bits);
}

// What stands in a row instead of the model's logit.
struct Edit {
  std::int32_t id;
  float logit;
};

class Logits {
 public:
  Logits(const void* data, LogitType type, std::int64_t width) : data_(data), type_(type), width_(width) {}

  // edits: by rising ids, each once. allowed: a bit for each id, from the lowest of the first word on, in as many words
  // as `words_of` says; the logits of the others are -inf. Empty: all are. Both must stay.
  Logits changed(std::span<const Edit> edits, std::span<const std::uint32_t> allowed) const {
    Logits changed = *this;
    changed.edits_ = edits;
    changed.allowed_ = allowed;
    return changed;
  }

  std::int64_t width() const { return width_; }
  bool has_allowed() const { return !allowed_.empty(); }
  std::int64_t num_blocks() const { return (width_ + block_size - 1) / block_size; }

  // Those of a block, from id `block * block_size` on; past the last id they are -inf. In `room`, if not where they
  // lie.
  const float* block(std::int64_t block, Block<float>& room) const {
    const float* stored = stored_block(block, room);
    return edits_.empty() && allowed_.empty() ? stored : changed_block(block, stored, room);
  }

  // As the model gave it.
  float stored(std::int32_t id) const {
    switch (type_) {
      case LogitType::f32:
        return static_cast<const float*>(data_)[id];
      case LogitType::bf16:
        return from_bf16(static_cast<const std::uint16_t*>(data_)[id]);
      case LogitType::f16:
        return from_f16(static_cast<const std::uint16_t*>(data_)[id]);
      case LogitType::f64:
        return static_cast<float>(static_cast<const double*>(data_)[id]);
    }
    __builtin_unreachable();
  }

 private:
  const float* stored_block(std::int64_t block, Block<float>& room) const {
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

  const float* changed_block(std::int64_t block, const float* stored, Block<float>& room) const {
    constexpr int words = block_size / word_bits;
    const std::int64_t begin = block * block_size, end = begin + block_size;
    const auto before = [](const Edit& edit, std::int64_t id) { return edit.id < id; };
    const auto first = std::lower_bound(edits_.begin(), edits_.end(), begin, before);
    const auto last = std::lower_bound(first, edits_.end(), end, before);
    const std::uint32_t* allowed = allowed_.empty() ? nullptr : allowed_.data() + block * words;
    if (allowed != nullptr && std::all_of(allowed, allowed + words, [](std::uint32_t word) { return word == ~0u; }))
      allowed = nullptr;
    if (first == last && allowed == nullptr) return stored;
    if (stored != room.of) std::copy(stored, stored + block_size, room.of);
    for (auto edit = first; edit != last; ++edit) room.of[edit->id - begin] = edit->logit;
    if (allowed == nullptr) return room.of;
    constexpr float out = -std::numeric_limits<float>::infinity();
    for (int word = 0; word < words; ++word) {
      float* logits = room.of + word * word_bits;
      if (allowed[word] == 0) {
        std::fill(logits, logits + word_bits, out);
      } else if (allowed[word] != ~0u) {
        for (int bit = 0; bit < word_bits; ++bit)
          if ((allowed[word] >> bit & 1) == 0) logits[bit] = out;
      }
    }
    return room.of;
  }

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
  std::span<const Edit> edits_;
  std::span<const std::uint32_t> allowed_;
};

}  // namespace tsrun
