// The order of those who wait: by priority, which rises with time; then the user who was served least; then by arrival.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "entry.hpp"

namespace tsrun {

// Nothing here is looked at by a step that admits nobody, however many wait.
class WaitingQueue {
 public:
  explicit WaitingQueue(Seconds aging) : aging_(aging) {}

  void push(Entry& entry, Seconds now);
  void erase(Entry& entry);
  std::int32_t size() const { return size_; }

  // Those who have waited long enough rise by a class.
  void promote(Seconds now);

  // Who is next of those that are not passed over, null when nobody is; then the others of the same user and priority,
  // in order.
  Entry* front(std::span<const Entry* const> passed = {});
  // Whether more than `count` users wait who have fewer than `running` requests running.
  bool has_users_below(std::int32_t running, std::int32_t count) const;
  void candidates(const Entry& front, std::size_t most, std::vector<Entry*>& found) const;

  // What is not known from the entries.
  template <typename Visit>
  void describe(Visit&& visit) const {
    for (const Class& each : classes_) {
      for (const Place& place : each.order) {
        visit(number(place.user->id));
        visit(place.user->served - place.served);
        visit(place.runs);
      }
    }
  }

 private:
  struct ByArrival {
    bool operator()(const Entry* a, const Entry* b) const { return a->number < b->number; }
  };
  using Line = std::set<Entry*, ByArrival>;

  // A line's place in the order of its class, looked at again when it comes first. Of equals who has nothing running
  // goes first.
  struct Place {
    std::int64_t served;
    bool runs;
    std::int64_t number;  // of the line's first
    User* user;
    auto operator<=>(const Place& other) const {
      return std::tuple(served, runs, number) <=> std::tuple(other.served, other.runs, other.number);
    }
  };
  static Place place_of(const Line& line) {
    Entry* first = *line.begin();
    return {first->user->served, first->user->num_running > 0, first->number, first->user};
  }
  struct Class {
    std::map<User*, std::pair<Line, Place>> lines;
    std::set<Place> order;
  };

  void insert(Entry& entry);
  void remove(Entry& entry);
  Class& class_of(const Entry& entry) { return classes_[static_cast<std::size_t>(entry.priority)]; }

  Seconds aging_;
  Class classes_[num_priorities];
  std::set<std::pair<Seconds, Entry*>> promotions_;
  std::int32_t size_ = 0;
};

}  // namespace tsrun
