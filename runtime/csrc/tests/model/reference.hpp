// What a request's tokens are, and what each position of a cache must hold, whatever happens to the request.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "block_hash.hpp"
#include "entry.hpp"

namespace tsrun::model {

// An invariant that does not hold.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void broken(const Parts&... what) {
  std::ostringstream out;
  (out << ... << what);
  throw Violation(out.str());
}

// What a place in a cache holds: a digest of a token and of everything before it.
using Content = std::uint64_t;
inline constexpr Content garbage = 0;

inline Content content_root(std::uint64_t salt) { return fold(salt + keys[0], keys[1]); }
inline Content content_after(Content before, Token token) {
  return fold(before ^ keys[2], static_cast<std::uint64_t>(token) ^ keys[3]) | 1;
}

struct RequestSpec {
  std::vector<Token> prompt;
  std::int32_t max_new_tokens;
  RequestOptions options{};
  std::int32_t host_drafts = 0;  // what its owner drafts for each step
};

// The model always goes on from a prefix in the same way, with one of two tokens, so that requests meet again.
struct Reference {
  explicit Reference(const RequestSpec& spec) : tokens(spec.prompt) {
    Content content = content_root(spec.options.salt);
    for (const Token token : spec.prompt) contents.push_back(content = content_after(content, token));
    for (std::int32_t made = 0; made < spec.max_new_tokens; ++made) {
      tokens.push_back(static_cast<Token>(1 + (content >> 20U) % 2));
      contents.push_back(content = content_after(content, tokens.back()));
    }
  }

  std::vector<Token> tokens;
  std::vector<Content> contents;  // of each position; of a state that of the last position it has seen
};

}  // namespace tsrun::model
