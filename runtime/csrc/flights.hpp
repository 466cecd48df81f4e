// The steps and the transfer under way that use a request's pages.
#pragma once

#include <array>
#include <cassert>
#include <cstdint>
#include <optional>

#include "ids.hpp"
#include "pages.hpp"

namespace tsrun {

inline constexpr std::int32_t max_depth = 2;  // steps under way at once

// What a step under way computes of one request.
struct Flight {
  StepId step;
  std::int32_t sequence;  // its place in the step's plan
  std::int32_t begin;     // the position of its first row
  std::int32_t rows;
  std::int32_t new_tokens;  // 0 for a chunk that does not end the prompt, else 1 and one more for each draft

  std::int32_t end() const { return begin + rows; }
};

class Flights {
 public:
  Flights(Flights&&) = default;
  Flights& operator=(Flights&&) = default;

  bool empty() const { return count_ == 0 && !transfer_; }
  std::int32_t num_steps() const { return count_; }
  const Flight& youngest() const { return flights_[static_cast<std::size_t>(count_ - 1)]; }
  bool is_in(StepId step) const { return count_ > 0 && youngest().step == step; }  // the youngest of all
  const Flight& oldest() const { return flights_[0]; }

  void take_off(const Flight& flight) {
    assert(count_ < max_depth);
    flights_[static_cast<std::size_t>(count_++)] = flight;
  }
  // The place in its plan, known when all of the step is.
  void sit_at(std::int32_t sequence) { flights_[static_cast<std::size_t>(count_ - 1)].sequence = sequence; }
  Flight land() {
    assert(count_ > 0);
    const Flight landed = flights_[0];
    flights_[0] = flights_[1];
    --count_;
    return landed;
  }
  void crash() { count_ = 0; }
  // Fewer tokens were accepted than the flights after were planned with.
  void move_back(std::int32_t tokens) {
    for (std::int32_t index = 0; index < count_; ++index) flights_[static_cast<std::size_t>(index)].begin -= tokens;
  }

  void begin_transfer() { transfer_ = true; }
  void end_transfer() { transfer_ = false; }

  // The new tokens of all flights, if every draft is accepted.
  std::int32_t new_tokens() const {
    std::int32_t total = 0;
    for (std::int32_t index = 0; index < count_; ++index) total += flights_[static_cast<std::size_t>(index)].new_tokens;
    return total;
  }

  template <typename Visit>
  void describe(StepId retired, Visit&& visit) const {
    visit(count_ * 2 + (transfer_ ? 1 : 0));
    for (std::int32_t index = 0; index < count_; ++index) {
      const Flight& flight = flights_[static_cast<std::size_t>(index)];
      visit(number(flight.step) - number(retired));
      for (const std::int32_t value : {flight.sequence, flight.begin, flight.rows, flight.new_tokens}) visit(value);
    }
  }

  // What else could make flights, or copy them, could prove anything.
  [[nodiscard("who asks for the proof acts on it")]] std::optional<Landed> landed() const {
    return empty() ? std::optional(Landed()) : std::nullopt;
  }

 private:
  friend struct Seat;
  Flights() = default;

  std::array<Flight, max_depth> flights_{};
  std::int32_t count_ = 0;
  bool transfer_ = false;
};

}  // namespace tsrun
