// The states of a request. A state owns what it may use; an edge consumes one state and returns the next.
// The table of the whole machine is in transitions.hpp; transition_check.cpp holds these functions to it.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "block_hash.hpp"
#include "flights.hpp"
#include "ids.hpp"
#include "page_table.hpp"
#include "slots.hpp"
#include "token_buffers.hpp"
#include "transitions.hpp"

namespace tsrun {

// What every state carries: the prompt, the tokens made so far, how many may be made, and the hashes of full pages.
class Request {
 public:
  Request(RequestId id, std::span<const Token> prompt, std::int32_t max_new_tokens, std::uint64_t salt,
          std::uint64_t root, TokenBuffers* buffers)
      : id_(id),
        salt_(salt),
        root_(root),
        prompt_length_(static_cast<std::int32_t>(prompt.size())),
        max_length_(prompt_length_ + max_new_tokens),
        buffers_(buffers),
        tokens_(buffers->take(static_cast<std::size_t>(max_length_))) {  // all of them, so that no step allocates
    tokens_.assign(prompt.begin(), prompt.end());
  }
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;
  ~Request() { buffers_->give(std::move(tokens_)); }

  RequestId id() const { return id_; }
  std::uint64_t salt() const { return salt_; }
  std::int32_t length() const { return static_cast<std::int32_t>(tokens_.size()); }
  std::int32_t prompt_length() const { return prompt_length_; }
  std::int32_t max_length() const { return max_length_; }
  bool is_complete() const { return length() >= max_length_; }
  std::span<const Token> tokens() const { return tokens_; }
  std::span<const Token> page(std::int32_t index, std::int32_t page_size) const {
    return tokens().subspan(static_cast<std::size_t>(index) * static_cast<std::size_t>(page_size),
                            static_cast<std::size_t>(page_size));
  }
  void append(std::span<const Token> tokens) { tokens_.insert(tokens_.end(), tokens.begin(), tokens.end()); }

  // Of the page and all before it. Each is computed once, when it is first asked for.
  std::uint64_t hash(std::int32_t index, std::int32_t page_size) {
    const auto wanted = static_cast<std::size_t>(index);
    if (hashes_.empty()) hashes_.reserve(static_cast<std::size_t>(max_length_ / page_size));
    while (hashes_.size() <= wanted) {
      const auto next = static_cast<std::int32_t>(hashes_.size());
      hashes_.push_back(hash_block(next == 0 ? root_ : hashes_.back(), page(next, page_size)));
    }
    return hashes_[wanted];
  }
  // Of the first `num_pages` pages.
  std::span<const std::uint64_t> hashes(std::int32_t num_pages, std::int32_t page_size) {
    if (num_pages > 0) hash(num_pages - 1, page_size);
    return {hashes_.data(), static_cast<std::size_t>(num_pages)};
  }

 private:
  RequestId id_;
  std::uint64_t salt_;
  std::uint64_t root_;  // what the hash of its first page is chained to
  std::int32_t prompt_length_;
  std::int32_t max_length_;
  TokenBuffers* buffers_;
  std::vector<Token> tokens_;
  std::vector<std::uint64_t> hashes_;
};

// What a running request holds.
struct Seat {
  SlotLease slot;
  PageTable pages;
  Flights flights{};
  std::int32_t num_cached = 0;  // tokens whose keys and values are in the pages, of committed steps
};

// One owner each, so that a request is in one state; pointers, so that a transition moves two words.
using RequestOwner = std::unique_ptr<Request>;
using SeatOwner = std::unique_ptr<Seat>;

// Who may begin a state other than the first: the edges below. Known to request.cpp alone.
class EdgeKey {
  friend struct Edges;
  EdgeKey() = default;
};

#define TSRUN_STATE [[nodiscard("a request that nobody owns is lost with its pages")]]
struct TSRUN_STATE Waiting {
  RequestOwner request;
};
struct TSRUN_STATE Loading {
  Loading(EdgeKey, RequestOwner request, SeatOwner seat) : request(std::move(request)), seat(std::move(seat)) {}
  RequestOwner request;
  SeatOwner seat;
};
struct TSRUN_STATE Prefilling {
  Prefilling(EdgeKey, RequestOwner request, SeatOwner seat) : request(std::move(request)), seat(std::move(seat)) {}
  RequestOwner request;
  SeatOwner seat;
};
struct TSRUN_STATE Decoding {  // every token but the last is in the pages
  Decoding(EdgeKey, RequestOwner request, SeatOwner seat) : request(std::move(request)), seat(std::move(seat)) {}
  RequestOwner request;
  SeatOwner seat;
};
struct TSRUN_STATE Preempted {
  Preempted(EdgeKey, RequestOwner request) : request(std::move(request)) {}
  RequestOwner request;
};
struct TSRUN_STATE Finishing {
  Finishing(EdgeKey, RequestOwner request, SeatOwner seat) : request(std::move(request)), seat(std::move(seat)) {}
  RequestOwner request;
  SeatOwner seat;
};
struct Ended {
  RequestId request;
};
#undef TSRUN_STATE

template <typename S>
inline constexpr State state_of = State::ended;
template <>
inline constexpr State state_of<Waiting> = State::waiting;
template <>
inline constexpr State state_of<Loading> = State::loading;
template <>
inline constexpr State state_of<Prefilling> = State::prefilling;
template <>
inline constexpr State state_of<Decoding> = State::decoding;
template <>
inline constexpr State state_of<Preempted> = State::preempted;
template <>
inline constexpr State state_of<Finishing> = State::finishing;

template <typename S>
concept StoredState = state_of<std::remove_cvref_t<S>> != State::ended;

// The edges. `Landed` proves that no step under way uses the pages that go back.
Prefilling admit(Waiting&& state, SeatOwner seat);
Prefilling admit(Preempted&& state, SeatOwner seat);
Loading load(Waiting&& state, SeatOwner seat);
Loading load(Preempted&& state, SeatOwner seat);
Prefilling loaded(Loading&& state, std::int32_t num_cached);
Prefilling load_failed(Loading&& state);
Prefilling fill(Prefilling&& state, std::int32_t num_cached);
Decoding start_decoding(Prefilling&& state, Token token);
Decoding decode(Decoding&& state, std::span<const Token> tokens);
Prefilling rewind(Prefilling&& state);
Decoding rewind(Decoding&& state);
Preempted preempt(Prefilling&& state, Landed landed);
Preempted preempt(Decoding&& state, Landed landed);
Ended finish(Decoding&& state, Landed landed);
Ended finish(Preempted&& state);
Ended abort(Waiting&& state);
Ended abort(Preempted&& state);
Ended abort(Prefilling&& state, Landed landed);
Ended abort(Decoding&& state, Landed landed);
Finishing leave(Loading&& state);
Finishing leave(Prefilling&& state);
Finishing leave(Decoding&& state);
Ended release(Finishing&& state, Landed landed);

// Every other use of an event is a compile error that quotes the table's reason.
template <std::size_t size>
struct Text {
  char characters[size + 1] = {};
};

template <State from, Event event>
constexpr auto reason_text() {
  constexpr std::string_view reason = reason_against(from, event);
  Text<reason.size()> text;
  std::ranges::copy(reason, text.characters);
  return text;
}

// Never constant, so that the compiler quotes the call.
constexpr bool because(const char* reason) { return reason == nullptr ? true : throw reason; }

template <State from, Event event, Text reason>
struct IllegalTransition {
#if defined(__clang__)  // which shows template arguments as numbers, but a call's as text
  static_assert(because(reason_against(from, event).data()), "this state has no such transition");
#else
  static_assert(sizeof(reason) == 0, "this state has no such transition: the reason is the template argument");
#endif
};

template <typename S>
struct NotConsumed {
  static_assert(sizeof(S) == 0, "a transition consumes its state: give it with std::move");
};

template <Event event, typename S>
constexpr auto refuse() {
  if constexpr (!is_legal(state_of<std::remove_cvref_t<S>>, event)) {
    constexpr State from = state_of<std::remove_cvref_t<S>>;
    return IllegalTransition<from, event, reason_text<from, event>()>{};
  } else {
    return NotConsumed<S>{};
  }
}

template <typename S, Event event>
concept Refused =
    StoredState<S> && (!is_legal(state_of<std::remove_cvref_t<S>>, event) || std::is_lvalue_reference_v<S>);

#define TSRUN_REFUSE(event)                               \
  template <typename S, typename... Arguments>            \
    requires Refused<S, Event::event>                     \
  void event(S&&, Arguments&&...) {                       \
    static_cast<void>(sizeof(refuse<Event::event, S>())); \
  }

TSRUN_REFUSE(admit)
TSRUN_REFUSE(load)
TSRUN_REFUSE(loaded)
TSRUN_REFUSE(load_failed)
TSRUN_REFUSE(fill)
TSRUN_REFUSE(start_decoding)
TSRUN_REFUSE(decode)
TSRUN_REFUSE(rewind)
TSRUN_REFUSE(preempt)
TSRUN_REFUSE(finish)
TSRUN_REFUSE(abort)
TSRUN_REFUSE(leave)
TSRUN_REFUSE(release)
#undef TSRUN_REFUSE

}  // namespace tsrun
