// Memory for the tokens of requests, used again: fresh memory for a long prompt costs more than copying it there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "ids.hpp"

namespace tsrun {

// Buffers point at this: it stays where it is and outlives them.
class TokenBuffers {
 public:
  TokenBuffers() { spare_.reserve(max_spare); }
  TokenBuffers(const TokenBuffers&) = delete;
  TokenBuffers& operator=(const TokenBuffers&) = delete;

  // Empty, with room for `size` tokens: of the spare ones the smallest that has it.
  std::vector<Token> take(std::size_t size) {
    auto best = spare_.end();
    for (auto buffer = spare_.begin(); buffer != spare_.end(); ++buffer) {
      const bool is_better = best == spare_.end() || buffer->capacity() < best->capacity();
      if (buffer->capacity() >= size && buffer->capacity() <= 4 * size && is_better) best = buffer;
    }
    std::vector<Token> taken;
    if (best == spare_.end()) {
      taken.reserve(size);
      return taken;
    }
    taken = std::move(*best);
    spare_tokens_ -= taken.capacity();
    *best = std::move(spare_.back());
    spare_.pop_back();
    return taken;
  }

  void give(std::vector<Token>&& buffer) noexcept {
    if (buffer.capacity() < least_tokens || spare_.size() == max_spare) return;
    if (spare_tokens_ + buffer.capacity() > most_tokens) return;
    buffer.clear();
    spare_tokens_ += buffer.capacity();
    spare_.push_back(std::move(buffer));  // never allocates: reserved
  }

 private:
  static constexpr std::size_t max_spare = 64;
  static constexpr std::size_t least_tokens = 8192;                 // below, malloc itself is quick
  static constexpr std::size_t most_tokens = std::size_t{1} << 24;  // 64 MB

  std::vector<std::vector<Token>> spare_;
  std::size_t spare_tokens_ = 0;
};

}  // namespace tsrun
