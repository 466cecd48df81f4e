// A request as the scheduler keeps it: its state, and what its order and its rows in a step depend on.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "ids.hpp"
#include "request.hpp"

namespace tsrun {

inline constexpr std::int32_t num_priorities = 8;
inline constexpr Seconds never = std::numeric_limits<Seconds>::infinity();

// Whoever the requests are from. Rows computed for its requests are what it has been served.
struct User {
  UserId id{};
  std::int64_t served = 0;
  std::int32_t num_open = 0;  // requests that have not ended
  std::int32_t num_running = 0;
};

// What a request may say of itself beside its prompt.
struct RequestOptions {
  UserId user{};
  std::int32_t priority = 0;  // 0 first
  Seconds deadline = never;
  std::uint64_t salt = 0;  // of the prefix cache
  std::int32_t device_drafts = 0;
  bool needs_token = false;    // its next step can not be planned before the last one's token is known
  bool scores_prompt = false;  // the logits of all its prompt are looked at: it is computed whole, in short chunks
};

// A visitor out of one lambda a state. There is no default: a state without its lambda does not compile.
template <typename... Cases>
struct OnState : Cases... {
  using Cases::operator()...;
  template <StoredState S>
  auto operator()(S&) const {
    static_assert(sizeof(S) == 0, "this visitor has no case for a state");
  }
};
template <typename... Cases>
OnState(Cases...) -> OnState<Cases...>;

// A page that another request is about to compute.
struct Awaited {
  RequestId request;
  std::int32_t page;
};

struct Entry {
  using Stored = std::variant<Waiting, Loading, Prefilling, Decoding, Preempted, Finishing>;

  Entry(RequestId id, std::int64_t number, const RequestOptions& options, User* user, Stored&& state)
      : id(id), number(number), options(options), user(user), state(std::move(state)), priority(options.priority) {}

  RequestId id;
  std::int64_t number;  // in the order of arrival; a preempted request keeps its own
  RequestOptions options;
  User* user;
  Stored state;
  std::int32_t priority;            // rises while it waits
  Seconds promotion = never;        // when it rises next
  std::int32_t times_passed = 0;    // by others whose prefix was cached
  std::int32_t cached_tokens = -1;  // found in the prefix cache at its first admission
  std::optional<Awaited> awaited;   // it starts when that page is there
  std::vector<Token> drafts;        // to verify in its next step
  bool must_land = false;           // not planned again before it is preempted

  const Request& request() const {
    return std::visit([](const auto& held) -> const Request& { return *held.request; }, state);
  }
  Request& request() {
    return std::visit([](auto& held) -> Request& { return *held.request; }, state);
  }
  // Of a running or finishing request.
  Seat& seat() {
    Seat* found = std::visit(
        [](auto& held) -> Seat* {
          if constexpr (requires { held.seat; }) return held.seat.get();
          return nullptr;
        },
        state);
    return *found;
  }
  const Seat& seat() const { return const_cast<Entry*>(this)->seat(); }

  template <typename S>
  bool is() const {
    return std::holds_alternative<S>(state);
  }
  bool is_queued() const { return is<Waiting>() || is<Preempted>(); }
  bool is_running() const { return is<Loading>() || is<Prefilling>() || is<Decoding>(); }

  // Who goes first: by priority, then by arrival.
  bool precedes(const Entry& other) const {
    return priority != other.priority ? priority < other.priority : number < other.number;
  }

  // With the steps under way done and every draft accepted:
  std::int32_t planned_cached() const {
    const Flights& flights = seat().flights;
    return flights.num_steps() == 0 ? seat().num_cached : flights.youngest().end();
  }
  std::int32_t planned_length() const { return request().length() + seat().flights.new_tokens(); }
};

}  // namespace tsrun
