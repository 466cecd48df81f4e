// Byte pair encoding from where a text is cut into words and these into symbols: the merges.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace tsrun {

// What the compiler stored (tsc/artifact/vocabulary.py), not owned.
struct VocabularyArrays {
  std::string_view text;
  std::span<const std::int32_t> begin;  // [V + 1]: of each id's word in `text`
  std::span<const std::int32_t> order;  // [W]: ids by the bytes of their words
  std::span<const std::int32_t>
      first;  // [V + 1]: of each id's merges as the left half, which are ordered by the right one
  std::span<const std::int32_t> right;   // [M]
  std::span<const std::int32_t> rank;    // [M]
  std::span<const std::int32_t> result;  // [M]
  bool whole;                            // a word that is one of the vocabulary is taken without its merges
};

class Vocabulary {
 public:
  // std::invalid_argument where the arrays do not fit each other, are not in their orders, or words are not UTF-8.
  explicit Vocabulary(VocabularyArrays arrays);

  // Ids of symbols, and each one's word: symbols that follow each other with the same word are merged; one without
  // stays.
  std::vector<std::int32_t> merge(std::span<const std::int32_t> symbols,
                                  std::span<const std::optional<std::int32_t>> words) const;

  std::optional<std::int32_t> find(std::string_view word) const;

  // Empty for an id that there is not.
  std::string_view word(std::int32_t id) const;

 private:
  struct Merge {
    std::int32_t rank;
    std::int32_t result;
  };
  std::optional<Merge> merge_of(std::int32_t left, std::int32_t right) const;
  std::optional<std::int32_t> whole_word(std::span<const std::int32_t> symbols) const;
  void merge_word(std::span<const std::int32_t> symbols, std::vector<std::int32_t>& out) const;

  VocabularyArrays arrays_;
  std::int32_t size_;
};

}  // namespace tsrun
