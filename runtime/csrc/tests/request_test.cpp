#include "request.hpp"

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "check.hpp"
#include "surroundings.hpp"

namespace tsrun {

using tests::Surroundings;

template <typename S>
static Landed landed(const S& state) {
  return *state.seat->flights.landed();
}

TEST("a preempted request keeps its tokens and returns slot and pages") {
  Surroundings around;
  Decoding decoding = start_decoding(around.prefilling(), 20);
  CHECK(around.num_free() == 2 && around.slots.num_free() == 0);
  const Landed proof = landed(decoding);
  const Preempted preempted = preempt(std::move(decoding), proof);
  CHECK(around.num_free() == 4 && around.slots.num_free() == 1);
  CHECK(preempted.request->length() == 6 && preempted.request->tokens().back() == 20);
}

TEST("a request is complete after its last new token") {
  Surroundings around;
  Decoding decoding = start_decoding(around.prefilling(), 20);
  CHECK(!decoding.request->is_complete() && decoding.seat->num_cached == 5);
  const Token next[] = {21};
  decoding = decode(std::move(decoding), next);
  CHECK(decoding.request->is_complete() && decoding.seat->num_cached == 6);
}

TEST("a request in a step or a transfer has not landed") {
  Surroundings around;
  const SeatOwner seat = around.seat();
  Flights& flights = seat->flights;
  CHECK(flights.landed().has_value());
  flights.begin_transfer();
  CHECK(!flights.landed().has_value());
  flights.end_transfer();
  flights.take_off({StepId{0}, 0, 0, 4, 1});
  flights.take_off({StepId{1}, 0, 4, 1, 1});
  CHECK(!flights.landed().has_value() && flights.new_tokens() == 2);
  CHECK(flights.land().step == StepId{0});
  flights.move_back(1);
  CHECK(flights.oldest().begin == 3 && !flights.landed().has_value());
  CHECK(flights.land().step == StepId{1});
  CHECK(flights.landed().has_value());
}

TEST("a request that leaves keeps its pages until it is released") {
  Surroundings around;
  Finishing finishing = leave(around.prefilling());
  CHECK(around.num_free() == 2);
  const Landed proof = landed(finishing);
  CHECK(release(std::move(finishing), proof).request == RequestId{7});
  CHECK(around.num_free() == 4 && around.slots.num_free() == 1);
}

TEST("a page is hashed with all before it, and once") {
  Surroundings around;
  const std::vector<Token> prompt{1, 2, 3, 4, 1, 2, 3, 4};
  Request request(RequestId{1}, prompt, 4, 0, hash_root(0, 0), &around.buffers);
  CHECK(request.hash(0, 4) != request.hash(1, 4));
  CHECK(request.hashes(2, 4).data() == request.hashes(1, 4).data());
  Request salted(RequestId{2}, prompt, 4, 1, hash_root(0, 1), &around.buffers);
  CHECK(salted.hash(0, 4) != request.hash(0, 4));
}

TEST("memory of a long prompt is used again") {
  TokenBuffers buffers;
  std::vector<Token> buffer = buffers.take(10000);
  buffer.assign(10000, 1);
  const Token* memory = buffer.data();
  buffers.give(std::move(buffer));
  CHECK(buffers.take(100).data() != memory);  // too large a waste
  const std::vector<Token> again = buffers.take(9000);
  CHECK(again.data() == memory && again.empty());
}

}  // namespace tsrun
