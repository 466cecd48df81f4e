#include "request.hpp"

namespace tsrun {

struct Edges {
  static EdgeKey key() { return EdgeKey(); }
};

namespace {

template <typename Next, typename S>
Next with_seat(S&& state) {
  return Next(Edges::key(), std::move(state.request), std::move(state.seat));
}

template <typename S>
RequestOwner give_back(S&& state, Landed landed) {
  const SeatOwner seat = std::move(state.seat);  // its slot goes back here
  seat->pages.give_back(landed);
  return std::move(state.request);
}

template <typename S>
Ended end(S&& state) {
  const RequestOwner request = std::move(state.request);
  return Ended{request->id()};
}

template <typename S>
Ended end(S&& state, Landed landed) {
  return Ended{give_back(std::forward<S>(state), landed)->id()};
}

}  // namespace

Prefilling admit(Waiting&& state, SeatOwner seat) { return {Edges::key(), std::move(state.request), std::move(seat)}; }
Prefilling admit(Preempted&& state, SeatOwner seat) {
  return {Edges::key(), std::move(state.request), std::move(seat)};
}
Loading load(Waiting&& state, SeatOwner seat) { return {Edges::key(), std::move(state.request), std::move(seat)}; }
Loading load(Preempted&& state, SeatOwner seat) { return {Edges::key(), std::move(state.request), std::move(seat)}; }

Prefilling loaded(Loading&& state, std::int32_t num_cached) {
  state.seat->num_cached = num_cached;
  return with_seat<Prefilling>(std::move(state));
}
Prefilling load_failed(Loading&& state) { return with_seat<Prefilling>(std::move(state)); }

Prefilling fill(Prefilling&& state, std::int32_t num_cached) {
  state.seat->num_cached = num_cached;
  return std::move(state);
}

Decoding start_decoding(Prefilling&& state, Token token) {
  state.seat->num_cached = state.request->length();
  state.request->append({&token, 1});
  return with_seat<Decoding>(std::move(state));
}

Decoding decode(Decoding&& state, std::span<const Token> tokens) {
  state.request->append(tokens);
  state.seat->num_cached = state.request->length() - 1;
  return std::move(state);
}

Prefilling rewind(Prefilling&& state) {
  state.seat->flights.crash();
  return std::move(state);
}
Decoding rewind(Decoding&& state) {
  state.seat->flights.crash();
  return std::move(state);
}

Preempted preempt(Prefilling&& state, Landed landed) { return {Edges::key(), give_back(std::move(state), landed)}; }
Preempted preempt(Decoding&& state, Landed landed) { return {Edges::key(), give_back(std::move(state), landed)}; }

Ended finish(Decoding&& state, Landed landed) { return end(std::move(state), landed); }
Ended finish(Preempted&& state) { return end(std::move(state)); }
Ended abort(Waiting&& state) { return end(std::move(state)); }
Ended abort(Preempted&& state) { return end(std::move(state)); }
Ended abort(Prefilling&& state, Landed landed) { return end(std::move(state), landed); }
Ended abort(Decoding&& state, Landed landed) { return end(std::move(state), landed); }

Finishing leave(Loading&& state) { return with_seat<Finishing>(std::move(state)); }
Finishing leave(Prefilling&& state) { return with_seat<Finishing>(std::move(state)); }
Finishing leave(Decoding&& state) { return with_seat<Finishing>(std::move(state)); }

Ended release(Finishing&& state, Landed landed) { return end(std::move(state), landed); }

}  // namespace tsrun
