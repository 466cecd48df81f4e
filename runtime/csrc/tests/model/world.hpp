// A scheduler, its device and its requests, driven by events: what could happen next, what happens, and what must then
// hold.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/device.hpp"
#include "model/reference.hpp"
#include "scheduler.hpp"

namespace tsrun::model {

struct Configuration {
  std::string name;
  Limits limits;
  Policy policy{};
  std::vector<Padding> paddings{};
  std::vector<RequestSpec> requests{};
  // How often these may happen.
  std::int32_t aborts = 0;
  std::int32_t finishes = 0;
  std::int32_t failures = 0;
  std::int32_t lost_transfers = 0;
  std::int32_t ticks = 0;
  Seconds tick = 40;
};

struct Event {
  enum class Kind : std::uint8_t { submit, plan, commit, fail, abort, finish, moved, lost_move, draft, tick };
  Kind kind;
  std::int32_t which = 0;   // request or transfer
  std::int32_t choice = 0;  // how many of the drafts turn out right

  bool operator==(const Event&) const = default;
};
std::string name_of(const Event& event);

class World {
 public:
  World(const Configuration& configuration, Fault fault);
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  const Scheduler& scheduler() const { return scheduler_; }
  const Device& device() const { return device_; }

  void events(std::vector<Event>& found) const;
  bool is_possible(const Event& event) const;
  // Throws Violation.
  void apply(const Event& event);
  bool planned_nothing() const { return planned_nothing_; }  // since the last event that was no plan
  bool is_over() const;                                      // no request is open, no step or transfer is under way
  std::uint64_t fingerprint() const;

  // For runs without end: an ended request's place is taken by a new one.
  std::int32_t num_requests() const { return static_cast<std::int32_t>(requests_.size()); }
  bool is_replaceable(std::int32_t request) const;
  void replace(std::int32_t request, const RequestSpec& spec);
  bool is_open(std::int32_t request) const {
    return requests_[static_cast<std::size_t>(request)].status == Status::open;
  }
  void audit_every(std::int32_t events) { audit_every_ = events; }
  std::int64_t steps() const { return num_steps_; }
  Seconds now() const { return now_; }

 private:
  enum class Status : std::uint8_t { fresh, open, ended };
  struct Requested {
    RequestSpec spec;
    Reference reference;
    RequestId id;
    std::int32_t known;
    Status status = Status::fresh;
    bool has_drafts = false;  // since its last token
  };

  Requested& requested(RequestId id) { return requests_[static_cast<std::size_t>(number(id)) % requests_.size()]; }
  void plan(std::int32_t choice);
  void commit();
  void draft(Requested& request, std::int32_t num_right);
  void hear_of_ended();
  void start_transfers();
  bool is_in_step(RequestId id) const;
  std::int32_t num_choices(const Requested& request) const;
  void check();

  const Configuration& configuration_;
  const Fault fault_;
  std::vector<Requested> requests_;
  Scheduler scheduler_;
  Device device_;
  std::int32_t num_choices_ = 1;  // outcomes of a step's drafts
  std::int32_t most_drafts_ = 0;
  bool has_one_user_ = true;
  std::int32_t aborts_ = 0;
  std::int32_t finishes_ = 0;
  std::int32_t failures_ = 0;
  std::int32_t lost_transfers_ = 0;
  std::int32_t ticks_ = 0;
  Seconds now_ = 0;
  bool planned_nothing_ = false;
  std::int32_t audit_every_ = 1;
  std::int64_t num_events_ = 0;
  std::int64_t num_steps_ = 0;
};

}  // namespace tsrun::model
