#include "waiting_queue.hpp"

#include <algorithm>

namespace tsrun {

void WaitingQueue::push(Entry& entry, Seconds now) {
  if (entry.promotion == never && entry.priority > 0) entry.promotion = now + aging_;
  insert(entry);
  ++size_;
}

void WaitingQueue::erase(Entry& entry) {
  remove(entry);
  --size_;
}

void WaitingQueue::insert(Entry& entry) {
  Class& own = class_of(entry);
  auto& [line, where] = own.lines[entry.user];
  line.insert(&entry);
  if (*line.begin() == &entry) {  // a new line, or a new first of its line
    if (line.size() > 1) own.order.erase(where);
    where = place_of(line);
    own.order.insert(where);
  }
  if (entry.priority > 0) promotions_.insert({entry.promotion, &entry});
}

void WaitingQueue::remove(Entry& entry) {
  Class& own = class_of(entry);
  const auto found = own.lines.find(entry.user);
  auto& [line, where] = found->second;
  const bool was_first = *line.begin() == &entry;
  line.erase(&entry);
  if (was_first) {
    own.order.erase(where);
    if (line.empty()) {
      own.lines.erase(found);
    } else {
      where = place_of(line);
      own.order.insert(where);
    }
  }
  if (entry.priority > 0) promotions_.erase({entry.promotion, &entry});
}

void WaitingQueue::promote(Seconds now) {
  while (!promotions_.empty() && promotions_.begin()->first <= now) {
    Entry& entry = *promotions_.begin()->second;
    remove(entry);
    --entry.priority;
    entry.promotion += aging_;
    insert(entry);
  }
}

Entry* WaitingQueue::front(std::span<const Entry* const> passed) {
  for (Class& each : classes_) {
    for (auto at = each.order.begin(); at != each.order.end();) {
      auto& [line, where] = each.lines.at(at->user);
      const Place now = place_of(line);
      if (now.served != at->served || now.runs != at->runs) {
        each.order.erase(at);
        where = now;
        each.order.insert(where);
        at = each.order.begin();
      } else if (std::ranges::find(passed, *line.begin()) != passed.end()) {
        ++at;
      } else {
        return *line.begin();
      }
    }
  }
  return nullptr;
}

bool WaitingQueue::has_users_below(std::int32_t running, std::int32_t count) const {
  for (const Class& each : classes_) {
    for (const auto& [user, line] : each.lines) {
      if (user->num_running < running && count-- == 0) return true;
    }
  }
  return false;
}

void WaitingQueue::candidates(const Entry& front, std::size_t most, std::vector<Entry*>& found) const {
  found.clear();
  const Line& line = classes_[static_cast<std::size_t>(front.priority)].lines.at(front.user).first;
  for (Entry* entry : line) {
    if (found.size() == most) return;
    found.push_back(entry);
  }
}

}  // namespace tsrun
