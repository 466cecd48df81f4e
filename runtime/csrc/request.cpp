#include "request.hpp"

namespace tsrun {

namespace {

// Moves the state out of its storage: what the caller left behind owns nothing, the local's pages return here.
template <typename State>
RequestId end(State&& state) {
  const State last = std::move(state);
  return last.request.id();
}

template <typename State>
Waiting take_back(State&& state) {
  State last = std::move(state);
  return Waiting{std::move(last.request)};
}

}  // namespace

Prefilling admit(Waiting&& state, PageTable&& pages) {
  return Prefilling{std::move(state.request), std::move(pages), 0};
}

Prefilling fill(Prefilling&& state, std::int32_t num_cached) {
  state.num_cached = num_cached;
  return std::move(state);
}

Decoding start_decoding(Prefilling&& state, Token token) {
  state.request.append(token);
  return Decoding{std::move(state.request), std::move(state.pages)};
}

Decoding decode(Decoding&& state, Token token) {
  state.request.append(token);
  return std::move(state);
}

Waiting preempt(Prefilling&& state) { return take_back(std::move(state)); }
Waiting preempt(Decoding&& state) { return take_back(std::move(state)); }

RequestId finish(Decoding&& state) { return end(std::move(state)); }

RequestId drop(Waiting&& state) { return end(std::move(state)); }
RequestId drop(Prefilling&& state) { return end(std::move(state)); }
RequestId drop(Decoding&& state) { return end(std::move(state)); }

Draining drain(Prefilling&& state) { return Draining{state.request.id(), std::move(state.pages)}; }
Draining drain(Decoding&& state) { return Draining{state.request.id(), std::move(state.pages)}; }

RequestId release(Draining&& state) {
  const Draining last = std::move(state);
  return last.id;
}

}  // namespace tsrun
