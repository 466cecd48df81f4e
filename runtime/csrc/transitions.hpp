// The whole machine of a request: what each event does in each state, as data. `request.hpp` holds the code to it, and
// `tsrun._core.Scheduler.transitions()` and the diagram in docs/scheduler.md print it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace tsrun {

enum class State : std::uint8_t { waiting, loading, prefilling, decoding, preempted, finishing, ended };
enum class Event : std::uint8_t {
  admit,
  load,
  loaded,
  load_failed,
  fill,
  start_decoding,
  decode,
  rewind,
  preempt,
  finish,
  abort,
  leave,
  release
};

inline constexpr std::array state_names{"waiting",   "loading",   "prefilling", "decoding",
                                        "preempted", "finishing", "ended"};
inline constexpr std::array event_names{"admit",          "load",   "loaded", "load_failed", "fill",
                                        "start_decoding", "decode", "rewind", "preempt",     "finish",
                                        "abort",          "leave",  "release"};
inline constexpr std::size_t num_states = state_names.size();
inline constexpr std::size_t num_events = event_names.size();

struct Edge {
  State from;
  Event event;
  State to;
  std::string_view meaning;

  constexpr bool is_of(State state, Event seen) const { return from == state && event == seen; }
};

// An event that some states never see, and why.
struct Never {
  Event event;
  std::array<std::optional<State>, 5> states;
  std::string_view reason;

  constexpr bool is_of(State state, Event seen) const {
    return event == seen && std::ranges::find(states, std::optional(state)) != states.end();
  }
};

inline constexpr Edge edges[] = {
    {State::waiting, Event::admit, State::prefilling, "takes a slot, and the pages that the prefix cache has of it"},
    {State::waiting, Event::load, State::loading, "as admit, with more pages on their way from the host"},
    {State::waiting, Event::abort, State::ended, "leaves the queue"},
    {State::preempted, Event::admit, State::prefilling, "starts over, from what the prefix cache still has"},
    {State::preempted, Event::load, State::loading, "starts over, with pages on their way from the host"},
    {State::preempted, Event::finish, State::ended, "its last token met a stop condition"},
    {State::preempted, Event::abort, State::ended, "leaves the queue"},
    {State::loading, Event::loaded, State::prefilling, "the pages have arrived, and count as cached"},
    {State::loading, Event::load_failed, State::prefilling, "the pages have not arrived, and are computed"},
    {State::loading, Event::leave, State::finishing, "ends while the transfer still writes to its pages"},
    {State::prefilling, Event::fill, State::prefilling, "a chunk is computed that does not end the prompt"},
    {State::prefilling, Event::start_decoding, State::decoding, "the prompt is computed; its first token is there"},
    {State::prefilling, Event::rewind, State::prefilling, "its step failed; the chunk is computed again"},
    {State::prefilling, Event::preempt, State::preempted, "gives slot and pages back, keeps its tokens"},
    {State::prefilling, Event::abort, State::ended, "gives slot and pages back"},
    {State::prefilling, Event::leave, State::finishing, "ends while a step still uses its pages"},
    {State::decoding, Event::decode, State::decoding, "one token, or several that were drafted and accepted"},
    {State::decoding, Event::rewind, State::decoding, "its step failed; the token is computed again"},
    {State::decoding, Event::preempt, State::preempted, "gives slot and pages back, keeps its tokens"},
    {State::decoding, Event::finish, State::ended, "gives slot and pages back; full pages stay cached"},
    {State::decoding, Event::abort, State::ended, "gives slot and pages back"},
    {State::decoding, Event::leave, State::finishing, "ends while a step still uses its pages"},
    {State::finishing, Event::release, State::ended, "the last step or transfer is over; gives slot and pages back"},
};

inline constexpr Never nevers[] = {
    {Event::admit,
     {State::loading, State::prefilling, State::decoding},
     "a running request has its slot and pages already"},
    {Event::load,
     {State::loading, State::prefilling, State::decoding},
     "a running request has its slot and pages already"},
    {Event::loaded, {State::waiting, State::preempted}, "a request in the queue owns no pages that could arrive"},
    {Event::loaded, {State::prefilling, State::decoding}, "nothing is on its way to this request's pages"},
    {Event::load_failed, {State::waiting, State::preempted}, "a request in the queue owns no pages that could arrive"},
    {Event::load_failed, {State::prefilling, State::decoding}, "nothing is on its way to this request's pages"},
    {Event::fill, {State::waiting, State::preempted}, "a request in the queue owns no pages to fill"},
    {Event::fill, {State::loading}, "the pages are still written by a transfer"},
    {Event::fill, {State::decoding}, "the prompt of a decoding request is computed already"},
    {Event::start_decoding, {State::waiting, State::preempted}, "a request in the queue has no computed prompt"},
    {Event::start_decoding, {State::loading}, "the pages are still written by a transfer"},
    {Event::start_decoding, {State::decoding}, "it decodes already"},
    {Event::decode, {State::waiting, State::preempted}, "a request in the queue owns no pages to decode with"},
    {Event::decode, {State::loading, State::prefilling}, "the prompt is not computed yet"},
    {Event::rewind, {State::waiting, State::preempted, State::loading}, "it is in no step that could fail"},
    {Event::preempt,
     {State::waiting, State::preempted},
     "a request in the queue owns nothing that could be taken back"},
    {Event::preempt, {State::loading}, "the pages are still written by a transfer"},
    {Event::finish, {State::waiting, State::loading, State::prefilling}, "it has made no token; abort ends it"},
    {Event::abort, {State::loading}, "a transfer still writes to its pages; it leaves"},
    {Event::leave, {State::waiting, State::preempted}, "it is in no step or transfer to wait for; abort ends it"},
    {Event::release, {State::waiting, State::preempted}, "a request in the queue owns nothing to release"},
    {Event::release, {State::loading, State::prefilling, State::decoding}, "a running request still needs its pages"},
    {Event::admit, {State::finishing}, "it has ended"},
    {Event::load, {State::finishing}, "it has ended"},
    {Event::loaded, {State::finishing}, "it has ended; release follows the transfer"},
    {Event::load_failed, {State::finishing}, "it has ended; release follows the transfer"},
    {Event::fill, {State::finishing}, "it has ended; what its step makes is dropped"},
    {Event::start_decoding, {State::finishing}, "it has ended; what its step makes is dropped"},
    {Event::decode, {State::finishing}, "it has ended; what its step makes is dropped"},
    {Event::rewind, {State::finishing}, "it has ended, and is not computed again"},
    {Event::preempt, {State::finishing}, "it has ended, and must not come back to the queue"},
    {Event::finish, {State::finishing}, "it has ended"},
    {Event::abort, {State::finishing}, "it has ended; its pages are held until its step is over"},
    {Event::leave, {State::finishing}, "it has ended"},
};

// By value: with a sanitizer GCC 12 takes no comparison of these pointers for constant.
constexpr std::optional<Edge> find_edge(State from, Event event) {
  for (const Edge& edge : edges) {
    if (edge.is_of(from, event)) return edge;
  }
  return std::nullopt;
}

constexpr std::optional<Never> find_never(State from, Event event) {
  for (const Never& never : nevers) {
    if (never.is_of(from, event)) return never;
  }
  return std::nullopt;
}

constexpr bool is_legal(State from, Event event) { return find_edge(from, event).has_value(); }

// What an illegal event says to who wrote it.
constexpr std::string_view reason_against(State from, Event event) {
  const std::optional<Never> never = find_never(from, event);
  return never ? never->reason : "the table of transitions says nothing of it";
}

constexpr bool table_is_total() {
  for (std::size_t state = 0; state + 1 < num_states; ++state) {  // `ended` is where a request is gone
    for (std::size_t event = 0; event < num_events; ++event) {
      const auto is_cell = [s = static_cast<State>(state), e = static_cast<Event>(event)](const auto& row) {
        return row.is_of(s, e);
      };
      if (std::ranges::count_if(edges, is_cell) + std::ranges::count_if(nevers, is_cell) != 1) return false;
    }
  }
  return true;
}

constexpr bool leads_to(State from, State to) {
  std::array<bool, num_states> reached{};
  reached[static_cast<std::size_t>(from)] = true;
  for (std::size_t length = 1; length < num_states; ++length) {
    for (const Edge& edge : edges) {
      if (reached[static_cast<std::size_t>(edge.from)]) reached[static_cast<std::size_t>(edge.to)] = true;
    }
  }
  return reached[static_cast<std::size_t>(to)];
}

constexpr bool has_no_dead_end() {
  for (std::size_t state = 0; state < num_states; ++state) {
    const auto s = static_cast<State>(state);
    if (!leads_to(State::waiting, s) || !leads_to(s, State::ended)) return false;
  }
  return true;
}

// One that has no name would not be looked at above.
constexpr bool has_names() {
  const auto is_named = [](State state) { return static_cast<std::size_t>(state) < num_states; };
  return std::ranges::all_of(edges, [&](const Edge& edge) {
    const bool is_live = edge.from != State::ended;
    return is_live && is_named(edge.from) && is_named(edge.to) && static_cast<std::size_t>(edge.event) < num_events;
  });
}

static_assert(num_states == static_cast<std::size_t>(State::ended) + 1,
              "every state has a name, and `ended` is the last");
static_assert(num_events == static_cast<std::size_t>(Event::release) + 1, "every event has a name, in the same order");
static_assert(has_names(), "the table speaks of events with names, and of states that have not ended");
static_assert(table_is_total(), "every state says of every event, once, what it does or why it never comes");
static_assert(has_no_dead_end(), "every state can be reached, and leads to the end");

}  // namespace tsrun
