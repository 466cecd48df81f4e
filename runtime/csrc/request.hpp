// The states of a request. A state owns what it may use; an edge consumes one state and returns the next.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "ids.hpp"
#include "page_table.hpp"

namespace tsrun {

// What every state carries: the prompt, the tokens made so far, and how many may be made. Move-only, so it is in one
// state.
class Request {
 public:
  Request(RequestId id, std::vector<Token> prompt, std::int32_t max_new_tokens)
      : id_(id), tokens_(std::move(prompt)), max_length_(length() + max_new_tokens) {}
  Request(Request&&) = default;
  Request& operator=(Request&&) = default;

  RequestId id() const { return id_; }
  std::int32_t length() const { return static_cast<std::int32_t>(tokens_.size()); }
  Token token(std::int32_t position) const { return tokens_[static_cast<std::size_t>(position)]; }
  bool is_complete() const { return length() == max_length_; }

  void append(Token token) { tokens_.push_back(token); }

 private:
  RequestId id_;
  std::vector<Token> tokens_;
  std::int32_t max_length_;
};

struct Waiting {
  Request request;
};

struct Prefilling {
  Request request;
  PageTable pages;
  std::int32_t num_cached;  // tokens whose keys and values are in the pages
};

struct Decoding {  // every token but the last is in the pages
  Request request;
  PageTable pages;
};

// Aborted while a step was under way: that step still writes to the pages, so they return at its commit.
struct Draining {
  RequestId id;
  PageTable pages;
};

// The whole machine. An edge that is not in this list does not compile.
Prefilling admit(Waiting&& state, PageTable&& pages);
Prefilling fill(Prefilling&& state, std::int32_t num_cached);  // a chunk that does not end the prompt
Decoding start_decoding(Prefilling&& state, Token token);      // the chunk that ends it
Decoding decode(Decoding&& state, Token token);
Waiting preempt(Prefilling&& state);  // the pages return, the tokens stay
Waiting preempt(Decoding&& state);
RequestId finish(Decoding&& state);  // the edges below end the request; its pages return
RequestId drop(Waiting&& state);
RequestId drop(Prefilling&& state);
RequestId drop(Decoding&& state);
Draining drain(Prefilling&& state);  // the pages stay until the step is committed
Draining drain(Decoding&& state);
RequestId release(Draining&& state);

template <typename State>
concept CanAdmit = requires(State state, PageTable pages) { admit(std::forward<State>(state), std::move(pages)); };
template <typename State>
concept CanFill = requires(State state) { fill(std::forward<State>(state), 1); };
template <typename State>
concept CanStartDecoding = requires(State state) { start_decoding(std::forward<State>(state), Token{}); };
template <typename State>
concept CanDecode = requires(State state) { decode(std::forward<State>(state), Token{}); };
template <typename State>
concept CanPreempt = requires(State state) { preempt(std::forward<State>(state)); };
template <typename State>
concept CanFinish = requires(State state) { finish(std::forward<State>(state)); };
template <typename State>
concept CanDrain = requires(State state) { drain(std::forward<State>(state)); };
template <typename State>
concept CanRelease = requires(State state) { release(std::forward<State>(state)); };

static_assert(CanAdmit<Waiting> && !CanAdmit<Prefilling> && !CanAdmit<Decoding>, "a request is admitted once");
static_assert(CanFill<Prefilling> && !CanFill<Decoding> && !CanFill<Waiting>, "a waiting request owns no pages");
static_assert(CanStartDecoding<Prefilling> && !CanStartDecoding<Waiting>, "no decode before the prompt is cached");
static_assert(CanDecode<Decoding> && !CanDecode<Prefilling> && !CanDecode<Waiting>, "no decode within a prompt");
static_assert(CanPreempt<Prefilling> && CanPreempt<Decoding> && !CanPreempt<Waiting>, "only pages can be taken back");
static_assert(CanFinish<Decoding> && !CanFinish<Prefilling> && !CanFinish<Waiting>, "who finishes has made a token");
static_assert(CanDrain<Prefilling> && CanDrain<Decoding> && !CanDrain<Waiting>, "a waiting request is in no step");
static_assert(CanRelease<Draining> && !CanAdmit<Draining> && !CanPreempt<Draining>, "an aborted request stays so");
static_assert(!CanAdmit<Waiting&> && !CanPreempt<Decoding&>, "an edge consumes its state");
static_assert(!std::copyable<Waiting> && !std::copyable<Prefilling> && !std::copyable<Decoding> &&
                  !std::copyable<Draining> && !std::copyable<PageLease>,
              "a request is in one state, a page has one owner");
static_assert(std::is_nothrow_move_constructible_v<Prefilling> && std::is_nothrow_move_constructible_v<Decoding>,
              "a move that throws would lose a request");

}  // namespace tsrun
