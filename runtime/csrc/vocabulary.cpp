#include "vocabulary.hpp"

#include <algorithm>
#include <functional>
#include <queue>
#include <stdexcept>
#include <string>
#include <tuple>

namespace tsrun {
namespace {

constexpr std::int32_t no_symbol = -1;

// Merges wait by rank, those of one rank from left to right.
struct Candidate {
  std::int32_t rank;
  std::int32_t place;
  std::int32_t result;

  bool operator<(const Candidate& other) const { return std::tie(rank, place) > std::tie(other.rank, other.place); }
};

struct Symbol {
  std::int32_t id;
  std::int32_t before;
  std::int32_t after;
  bool gone = false;  // into the one before
};

bool rises(std::span<const std::int32_t> begins, std::size_t end) {
  return !begins.empty() && begins.front() == 0 && std::ranges::is_sorted(begins) &&
         static_cast<std::size_t>(begins.back()) == end;
}

// The bytes of the character at the front of a text, 0 where it is none of UTF-8.
std::size_t character_bytes(std::string_view text) {
  const auto at = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = at(0);
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return 0;
  const std::size_t bytes = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if (text.size() < bytes) return 0;
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((at(i) & 0xc0) != 0x80) return 0;
  }
  // Longer than it need be, half of a pair of UTF-16, or past the last.
  const bool wrong = (lead == 0xe0 && at(1) < 0xa0) || (lead == 0xed && at(1) > 0x9f) ||
                     (lead == 0xf0 && at(1) < 0x90) || (lead == 0xf4 && at(1) > 0x8f);
  return wrong ? 0 : bytes;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t bytes = character_bytes(text);
    if (bytes == 0) return false;
    text.remove_prefix(bytes);
  }
  return true;
}

void require(bool holds, const char* otherwise) {
  if (!holds) throw std::invalid_argument(otherwise);
}

bool is_one_character(std::string_view word) {
  const auto lead = word.empty() ? 0xffu : static_cast<unsigned char>(word[0]);
  const std::size_t bytes = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  return word.size() == bytes;
}

}  // namespace

Vocabulary::Vocabulary(VocabularyArrays arrays)
    : arrays_(arrays), size_(static_cast<std::int32_t>(arrays.begin.size()) - 1) {
  const auto are_ids = [this](std::span<const std::int32_t> ids) {
    return std::ranges::all_of(ids, [this](std::int32_t id) { return 0 <= id && id < size_; });
  };
  const std::size_t merges = arrays.right.size();
  require(rises(arrays.begin, arrays.text.size()) && rises(arrays.first, merges) &&
              arrays.first.size() == arrays.begin.size() && arrays.rank.size() == merges &&
              arrays.result.size() == merges && are_ids(arrays.order) && are_ids(arrays.right) &&
              are_ids(arrays.result),
          "its arrays do not fit each other");
  require(std::ranges::all_of(arrays.rank, [](std::int32_t rank) { return rank >= 0; }), "a merge has a negative rank");
  const auto in_order = [&](std::int32_t left) {
    const auto rights = arrays.right.subspan(arrays.first[left], arrays.first[left + 1] - arrays.first[left]);
    return std::ranges::adjacent_find(rights, std::greater_equal{}) == rights.end();
  };
  for (std::int32_t id = 0; id < size_; ++id) {
    require(in_order(id), "its merges are not in order");
    require(is_utf8(word(id)), "its words are not UTF-8");
  }
  require(std::ranges::is_sorted(arrays.order, {}, [this](std::int32_t id) { return word(id); }),
          "its words are not in order");
}

std::string_view Vocabulary::word(std::int32_t id) const {
  if (id < 0 || id >= size_) return {};
  return arrays_.text.substr(arrays_.begin[id], arrays_.begin[id + 1] - arrays_.begin[id]);
}

std::optional<std::int32_t> Vocabulary::find(std::string_view wanted) const {
  const auto found = std::ranges::lower_bound(arrays_.order, wanted, {}, [this](std::int32_t id) { return word(id); });
  if (found == arrays_.order.end() || word(*found) != wanted) return std::nullopt;
  return *found;
}

std::optional<Vocabulary::Merge> Vocabulary::merge_of(std::int32_t left, std::int32_t right) const {
  const auto candidates = arrays_.right.subspan(arrays_.first[left], arrays_.first[left + 1] - arrays_.first[left]);
  const auto found = std::ranges::lower_bound(candidates, right);
  if (found == candidates.end() || *found != right) return std::nullopt;
  const auto at = arrays_.first[left] + (found - candidates.begin());
  return Merge{arrays_.rank[at], arrays_.result[at]};
}

// A word with a symbol that is no character, for a byte or an unknown one, is not in the vocabulary: `tsc` saw to that.
std::optional<std::int32_t> Vocabulary::whole_word(std::span<const std::int32_t> symbols) const {
  std::string joined;
  for (const std::int32_t id : symbols) {
    if (!is_one_character(word(id))) return std::nullopt;
    joined += word(id);
  }
  return find(joined);
}

void Vocabulary::merge_word(std::span<const std::int32_t> ids, std::vector<std::int32_t>& out) const {
  if (arrays_.whole) {
    if (const auto id = whole_word(ids)) return out.push_back(*id);
  }
  const auto count = static_cast<std::int32_t>(ids.size());
  std::vector<Symbol> symbols(ids.size());
  std::priority_queue<Candidate> waiting;
  const auto consider = [&](std::int32_t place) {
    const std::int32_t next = symbols[place].after;
    if (next == no_symbol) return;
    if (const auto merge = merge_of(symbols[place].id, symbols[next].id)) {
      waiting.push({merge->rank, place, merge->result});
    }
  };
  for (std::int32_t i = 0; i < count; ++i) symbols[i] = {ids[i], i - 1, i + 1 < count ? i + 1 : no_symbol};
  for (std::int32_t i = 0; i < count; ++i) consider(i);
  while (!waiting.empty()) {
    const Candidate best = waiting.top();
    waiting.pop();
    Symbol& left = symbols[best.place];
    if (left.gone || left.after == no_symbol) continue;
    Symbol& right = symbols[left.after];
    const auto merge = merge_of(left.id, right.id);
    if (!merge || merge->result != best.result) continue;  // one of its halves has become another since
    left.id = best.result;
    left.after = right.after;
    right.gone = true;
    if (right.after != no_symbol) symbols[right.after].before = best.place;
    if (left.before != no_symbol) consider(left.before);
    consider(best.place);
  }
  for (const Symbol& symbol : symbols) {
    if (!symbol.gone) out.push_back(symbol.id);
  }
}

std::vector<std::int32_t> Vocabulary::merge(std::span<const std::int32_t> symbols,
                                            std::span<const std::optional<std::int32_t>> words) const {
  if (symbols.size() != words.size()) throw std::invalid_argument("each symbol has a word, or is said to have none");
  if (!std::ranges::all_of(symbols, [this](std::int32_t id) { return 0 <= id && id < size_; })) {
    throw std::invalid_argument("a symbol is outside of the vocabulary");
  }
  std::vector<std::int32_t> ids;
  ids.reserve(symbols.size());
  for (std::size_t begin = 0, end = 0; begin < symbols.size(); begin = end) {
    end = begin + 1;
    while (words[begin] && end < symbols.size() && words[end] == words[begin]) ++end;
    if (end - begin == 1) {
      ids.push_back(symbols[begin]);
    } else {
      merge_word(symbols.subspan(begin, end - begin), ids);
    }
  }
  return ids;
}

}  // namespace tsrun
