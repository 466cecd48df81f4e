// Prompt lookup: what may come next in a text, by what followed the same tokens before, in the text itself and in what
// was written lately for others. Every token costs the same, however long the text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "ids.hpp"

namespace tsrun {

// A text that grows, and where each of its pairs and fours of tokens stood last. Positions count from its first token
// on; with `most` only so many of its last tokens are sure to be kept.
class History {
 public:
  static constexpr std::array<int, 2> lengths{4, 2};  // of what is looked up, the longer first
  static constexpr Token gap = -1;                    // between two texts: no token

  explicit History(std::size_t most = std::numeric_limits<std::size_t>::max()) : most_(most) {}

  std::int64_t begin() const { return begin_; }
  std::int64_t end() const { return begin_ + static_cast<std::int64_t>(tokens_.size()); }
  bool has(std::int64_t position) const { return position >= begin_ && position < end(); }
  Token operator[](std::int64_t position) const { return tokens_[static_cast<std::size_t>(position - begin_)]; }

  // Not found before `index` was called.
  void append(Token token);
  void index();
  // The position after where the last `length` tokens of another text, or of this one, stood last; -1: nowhere.
  std::int64_t find(const History& text, int length) const;
  // How many tokens before `position` are the last ones of a text; `most` at most.
  int common(const History& text, std::int64_t position, int most) const;

 private:
  // By the hash of what ends before it, a position from begin_ on. What shares a place is forgotten: whoever finds
  // compares.
  using Places = std::vector<std::uint32_t>;

  std::size_t place(const History& text, std::int64_t end, int length) const;
  void note(std::int64_t end);
  void index_anew(std::size_t num_places);

  std::size_t most_;
  std::int64_t begin_ = 0;
  std::vector<Token> tokens_;
  std::array<Places, lengths.size()> places_;
};

// How often what a history says came true, by how much of the text it agreed with: recent tokens count most.
class Acceptance {
 public:
  static constexpr int num_lengths = 9;
  enum class Source : std::uint8_t { own, resumed, shared };  // see Cursor
  static constexpr int num_classes = 3 * num_lengths;

  // forgets: what a token counts after the next one; weight: how many tokens' worth the beginning is.
  Acceptance(double forgets, double weight, const Acceptance* beginning = nullptr);

  static int class_of(Source source, int length);
  double chance(int of_class) const {
    const Tally& tally = tallies_[static_cast<std::size_t>(of_class)];
    return tally.right / tally.seen;
  }
  void count(int of_class, bool is_right);

 private:
  struct Tally {
    double right, seen;
  };
  double forgets_;
  std::array<Tally, num_classes> tallies_{};
};

// Where a text and a history agree. A match that breaks goes on close to where it broke, if the text comes back: a file
// that is repeated with small changes.
class Cursor {
 public:
  Cursor(const History* history, bool is_shared) : history_(history), is_shared_(is_shared) {}

  bool is_set() const { return history_->has(next_) && (*history_)[next_] != History::gap; }
  Token expected() const { return (*history_)[next_]; }
  // What it expects, `further` tokens on: after the end of the text itself the drafts repeat themselves.
  Token expected(int further, std::span<const Token> drafts) const;
  int of_class(int further = 0) const;
  // The text has a token more, which the history has not indexed yet.
  void move(const History& text);

 private:
  static constexpr int longest = 32;      // compared
  static constexpr int sure = 8;          // a match so long is not looked up again
  static constexpr int window = 48;       // tokens among which a broken match may go on
  static constexpr int most_broken = 64;  // tokens after which it is given up

  bool try_at(const History& text, std::int64_t next, bool is_resumed);
  void resume(const History& text);

  const History* history_;
  bool is_shared_;
  bool is_resumed_ = false;
  std::int64_t next_ = -1;
  int length_ = 0;              // tokens that agree; where some were compared only, at least
  std::int64_t broke_at_ = -1;  // where a match broke that was worth something
  int broken_for_ = 0;          // tokens since
};

// What was written lately, by requests that may see each other's.
struct Outputs {
  explicit Outputs(std::size_t most);
  void append(std::span<const Token> tokens);

  History history;
  Acceptance acceptance;
};

// One request's text.
class Lookup {
 public:
  Lookup(std::span<const Token> prompt, std::shared_ptr<Outputs> outputs);

  // The next token. What the cursors expected counts, whether it was asked for or not.
  void take(Token token);
  // At most so many tokens that may follow, and how likely each comes with all before it.
  void draft(std::size_t most, std::vector<Token>& tokens, std::vector<double>& chances) const;

 private:
  std::shared_ptr<Outputs> outputs_;
  History text_;
  Acceptance acceptance_;
  std::array<Cursor, 2> cursors_;
};

}  // namespace tsrun
