#include "lookup.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace tsrun {

namespace {

constexpr std::size_t fewest_places = 256;
constexpr std::uint32_t nowhere = 0;   // else a position and 1
constexpr double least_chance = 0.02;  // of a draft
constexpr double request_forgets = 0.94, outputs_forget = 0.99;
constexpr double weight_at_first = 4;  // tokens' worth, of what is known of others

}  // namespace

void History::append(Token token) {
  if (tokens_.size() / 2 >= most_) {
    const auto dropped = static_cast<std::ptrdiff_t>(tokens_.size() - most_);
    tokens_.erase(tokens_.begin(), tokens_.begin() + dropped);
    begin_ += dropped;
    index_anew(places_.front().size());
  }
  tokens_.push_back(token);
}

void History::index() {
  if (2 * tokens_.size() > places_.front().size()) {
    index_anew(std::max(fewest_places, std::bit_ceil(4 * tokens_.size())));
  } else {
    note(end());
  }
}

std::size_t History::place(const History& text, std::int64_t end, int length) const {
  std::uint64_t hash = static_cast<std::uint64_t>(length);
  for (std::int64_t at = end - length; at < end; ++at) {
    hash = (hash ^ static_cast<std::uint32_t>(text[at])) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
  }
  return static_cast<std::size_t>(hash >> 7) & (places_.front().size() - 1);
}

void History::note(std::int64_t end) {
  for (std::size_t of = 0; of < lengths.size(); ++of) {
    if (end - begin_ >= lengths[of]) {
      places_[of][place(*this, end, lengths[of])] = static_cast<std::uint32_t>(end - begin_ + 1);
    }
  }
}

void History::index_anew(std::size_t num_places) {
  for (Places& places : places_) places.assign(num_places, nowhere);
  for (std::int64_t at = begin_ + 1; at <= end(); ++at) note(at);
}

std::int64_t History::find(const History& text, int length) const {
  if (places_.front().empty() || text.end() - text.begin() < length) return -1;
  const auto of = static_cast<std::size_t>(std::ranges::find(lengths, length) - lengths.begin());
  const std::uint32_t found = places_[of][place(text, text.end(), length)];
  if (found == nowhere) return -1;
  const std::int64_t position = begin_ + static_cast<std::int64_t>(found) - 1;
  return common(text, position, length) == length ? position : -1;
}

int History::common(const History& text, std::int64_t position, int most) const {
  int count = 0;
  while (count < most && has(position - count - 1) && text.has(text.end() - count - 1) &&
         (*this)[position - count - 1] == text[text.end() - count - 1]) {
    ++count;
  }
  return count;
}

// Before anything is known a longer match is better, and one of four tokens is right as often as not.
Acceptance::Acceptance(double forgets, double weight, const Acceptance* beginning) : forgets_(forgets) {
  for (int each = 0; each < num_classes; ++each) {
    const int length = each % num_lengths;
    const double chance = beginning != nullptr ? beginning->chance(each) : (length + 0.5) / (length + 4);
    tallies_[static_cast<std::size_t>(each)] = {weight * chance, weight};
  }
}

// 1, 2, 3, 4, to 6, to 10, to 16, to 31, and longer.
int Acceptance::class_of(Source source, int length) {
  constexpr std::array<int, num_lengths - 1> last{1, 2, 3, 4, 6, 10, 16, 31};
  const auto at = std::ranges::lower_bound(last, length) - last.begin();
  return static_cast<int>(source) * num_lengths + static_cast<int>(at);
}

void Acceptance::count(int of_class, bool is_right) {
  Tally& tally = tallies_[static_cast<std::size_t>(of_class)];
  tally.right = tally.right * forgets_ + is_right;
  tally.seen = tally.seen * forgets_ + 1;
}

int Cursor::of_class(int further) const {
  using enum Acceptance::Source;
  return Acceptance::class_of(is_shared_ ? shared : is_resumed_ ? resumed : own, length_ + further);
}

Token Cursor::expected(int further, std::span<const Token> drafts) const {
  const std::int64_t at = next_ + further;
  if (history_->has(at)) return (*history_)[at];
  const std::int64_t beyond = at - history_->end();
  if (is_shared_ || beyond < 0 || beyond >= std::ssize(drafts)) return History::gap;
  return drafts[static_cast<std::size_t>(beyond)];
}

// Whether more agrees there than where it is.
bool Cursor::try_at(const History& text, std::int64_t next, bool is_resumed) {
  const int length = history_->common(text, next, longest);
  if (length <= length_) return false;
  next_ = next;
  length_ = length;
  is_resumed_ = is_resumed;
  return true;
}

void Cursor::move(const History& text) {
  if (is_set() && expected() == text[text.end() - 1]) {
    ++next_;
    ++length_;
  } else {
    if (length_ >= History::lengths[0] && history_->has(next_)) {
      broke_at_ = next_;
      broken_for_ = 0;
    }
    next_ = -1;
    length_ = 0;
  }
  if (length_ >= sure) {
    broke_at_ = -1;
    return;
  }
  if (broke_at_ >= 0) resume(text);
  for (const int length : History::lengths) {
    if (const std::int64_t found = history_->find(text, length); found >= 0) try_at(text, found, false);
  }
}

// The first place after where it broke that has the last two tokens; of one token that was replaced, what follows it.
void Cursor::resume(const History& text) {
  if (++broken_for_ > most_broken) {
    broke_at_ = -1;
    return;
  }
  const std::int64_t last = std::min(broke_at_ + window, history_->end() - 1);
  for (std::int64_t at = broke_at_; at <= last && broken_for_ > 1; ++at) {
    if (history_->common(text, at, 2) == 2 && try_at(text, at, true)) return;
  }
  if (broken_for_ == 1 && length_ == 0 && broke_at_ < last) {
    next_ = broke_at_ + 1;
    length_ = 1;
    is_resumed_ = true;
  }
}

Outputs::Outputs(std::size_t most) : history(most), acceptance(outputs_forget, 2) {}

void Outputs::append(std::span<const Token> tokens) {
  for (const Token token : tokens) {
    history.append(token);
    history.index();
  }
  history.append(History::gap);
}

Lookup::Lookup(std::span<const Token> prompt, std::shared_ptr<Outputs> outputs)
    : outputs_(std::move(outputs)),
      acceptance_(request_forgets, weight_at_first, &outputs_->acceptance),
      cursors_{Cursor(&text_, false), Cursor(&outputs_->history, true)} {
  if (prompt.empty()) return;
  for (const Token token : prompt.first(prompt.size() - 1)) {
    text_.append(token);
    text_.index();
  }
  text_.append(prompt.back());
  for (Cursor& cursor : cursors_) cursor.move(text_);
  text_.index();
}

void Lookup::take(Token token) {
  for (const Cursor& cursor : cursors_) {
    if (!cursor.is_set()) continue;
    acceptance_.count(cursor.of_class(), cursor.expected() == token);
    outputs_->acceptance.count(cursor.of_class(), cursor.expected() == token);
  }
  text_.append(token);
  for (Cursor& cursor : cursors_) cursor.move(text_);
  text_.index();
}

void Lookup::draft(std::size_t most, std::vector<Token>& tokens, std::vector<double>& chances) const {
  tokens.clear();
  chances.clear();
  const Cursor* best = nullptr;
  double least = least_chance;
  for (const Cursor& cursor : cursors_) {
    if (!cursor.is_set() || acceptance_.chance(cursor.of_class()) < least) continue;
    best = &cursor;
    least = acceptance_.chance(cursor.of_class());
  }
  double chance = 1;
  while (best != nullptr && tokens.size() < most) {
    const auto further = static_cast<int>(tokens.size());
    const Token token = best->expected(further, tokens);
    chance *= acceptance_.chance(best->of_class(further));
    if (token == History::gap || chance < least_chance) return;
    tokens.push_back(token);
    chances.push_back(chance);
  }
}

}  // namespace tsrun
