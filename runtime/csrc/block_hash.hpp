// The chained hash of a page's worth of tokens: 64 bits, keyed, of the tokens and of everything before them.
//
// It only finds candidates. The prefix cache compares the tokens of each page that it gives again, so that two prompts
// with one hash can never read each other's pages.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include "ids.hpp"

namespace tsrun {

__extension__ using Product = unsigned __int128;

// Both halves of the 128-bit product: every bit of the operands reaches every bit of the result.
inline std::uint64_t fold(std::uint64_t x, std::uint64_t y) {
  const Product product = static_cast<Product>(x) * y;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64U);
}

inline std::uint64_t two_tokens(const Token* tokens) {
  std::uint64_t word = 0;
  std::memcpy(&word, tokens, sizeof word);
  return word;
}

// Odd constants of balanced bits.
inline constexpr std::uint64_t keys[] = {0xa0761d6478bd642fULL, 0xe7037ed1a0b428dbULL, 0x8ebc6af09c88c6e3ULL,
                                         0x589965cc75374cc3ULL, 0x1d8e4e27c47d124fULL};

inline std::uint64_t hash_root(std::uint64_t name_space, std::uint64_t salt) {
  return fold(fold(name_space ^ keys[0], keys[1]) ^ salt ^ keys[2], keys[3]);
}

// Two products at a time do not wait for each other.
inline std::uint64_t hash_block(std::uint64_t parent, std::span<const Token> tokens) {
  std::uint64_t left = parent ^ keys[0];
  std::uint64_t right = fold(parent ^ keys[4], tokens.size() ^ keys[1]);
  std::size_t at = 0;
  for (; at + 8 <= tokens.size(); at += 8) {
    left = fold(two_tokens(&tokens[at]) ^ keys[1], two_tokens(&tokens[at + 2]) ^ left);
    right = fold(two_tokens(&tokens[at + 4]) ^ keys[2], two_tokens(&tokens[at + 6]) ^ right);
  }
  for (; at < tokens.size(); ++at) left = fold(left ^ static_cast<std::uint32_t>(tokens[at]), keys[3]);
  return fold(left ^ keys[3], right ^ keys[4]);
}

}  // namespace tsrun
