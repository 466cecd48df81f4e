// Holds the functions of request.hpp to the table of transitions.hpp, at compile time: each edge is a function that
// takes its state and returns the next one, and no other state has it.
#include <concepts>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include "request.hpp"

namespace tsrun {

namespace {

struct NoFunction {};

// What an event's function returns for a state, asked with whatever the event takes beside it; void where it is
// refused.
#define TSRUN_RESULT(event, ...)                                                                 \
  template <typename S>                                                                          \
  auto result(std::integral_constant<Event, Event::event>, S&& state) {                          \
    if constexpr (requires { event(std::move(state) __VA_OPT__(, ) __VA_ARGS__); }) {            \
      return std::type_identity<decltype(event(std::move(state) __VA_OPT__(, ) __VA_ARGS__))>{}; \
    } else if constexpr (requires { event(std::move(state)); }) {                                \
      return std::type_identity<decltype(event(std::move(state)))>{};                            \
    } else {                                                                                     \
      return std::type_identity<NoFunction>{};                                                   \
    }                                                                                            \
  }

TSRUN_RESULT(admit, std::declval<SeatOwner>())
TSRUN_RESULT(load, std::declval<SeatOwner>())
TSRUN_RESULT(loaded, 0)
TSRUN_RESULT(load_failed)
TSRUN_RESULT(fill, 0)
TSRUN_RESULT(start_decoding, Token{})
TSRUN_RESULT(decode, std::span<const Token>())
TSRUN_RESULT(rewind)
TSRUN_RESULT(preempt, std::declval<Landed>())
TSRUN_RESULT(finish, std::declval<Landed>())
TSRUN_RESULT(abort, std::declval<Landed>())
TSRUN_RESULT(leave)
TSRUN_RESULT(release, std::declval<Landed>())
#undef TSRUN_RESULT

template <typename S, Event event>
constexpr bool agrees() {
  using Result = typename decltype(result(std::integral_constant<Event, event>{}, std::declval<S>()))::type;
  constexpr std::optional<Edge> edge = find_edge(state_of<S>, event);
  if constexpr (!edge.has_value()) {
    static_assert(std::is_void_v<Result>,
                  "there is a function for this state and event, which the table has no edge for");
  } else {
    constexpr bool is_state = StoredState<Result> || std::same_as<Result, Ended>;
    static_assert(is_state && edge->to == state_of<Result>,
                  "no function takes this state along this edge of the table");
  }
  return true;
}

template <typename S, std::size_t... events>
constexpr bool agrees_in_all(std::index_sequence<events...>) {
  return (agrees<S, static_cast<Event>(events)>() && ...);
}

template <typename... States>
constexpr bool all_agree() {
  static_assert(sizeof...(States) + 1 == num_states, "every state of the table is a type");
  return (agrees_in_all<States>(std::make_index_sequence<num_events>()) && ...);
}

static_assert(all_agree<Waiting, Loading, Prefilling, Decoding, Preempted, Finishing>(),
              "the functions in request.hpp are exactly the edges of the table in transitions.hpp");

template <typename... Owners>
constexpr bool have_one_owner = ((!std::copyable<Owners> && std::is_nothrow_move_constructible_v<Owners>) && ...);

static_assert(have_one_owner<Waiting, Loading, Prefilling, Decoding, Preempted, Finishing>,
              "a request is in one state, and a move that throws would lose it");
static_assert(have_one_owner<WritablePage, CachedPage, CachedPages, SlotLease, HostCopy>, "a lease has one owner");
static_assert(!std::is_default_constructible_v<Landed>, "only a request that is in no step can prove it");

}  // namespace

}  // namespace tsrun
