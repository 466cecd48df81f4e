// What is known of each cell of memory: who wrote it last and who has read it since. An access that is not ordered
// after those that it conflicts with is a race, whatever the order in which this run happened to execute them.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "clock.hpp"
#include "fault.hpp"

namespace ptx {

// One who accesses memory: what he knows at that moment, and how his accesses are recorded.
struct Actor {
  const Clock* all = nullptr;
  Agent self = 0;    // whose accesses up to now are ordered before this one without more
  Agent pipe = ~0u;  // likewise: the stream of asynchronous work in order that this belongs to
  Time pipe_time = ~0u;
  Agent pipe2 = ~0u;
  Time pipe2_time = 0;
  // Of asynchronous work: generic writes that it sees.
  const Clock* fenced = nullptr;
  Agent fenced_self = 0;
  Time fenced_time = 0;

  Agent stamp = 0;
  Time time = 0;
  std::uint32_t line = 0;
  bool async = false;
  bool strong = false;  // atomic or volatile: two such accesses do not race
  bool copied = false;  // by cp.async

  bool knows(Agent agent, Time when) const {
    return agent == self || (agent == pipe && when <= pipe_time) || (agent == pipe2 && when <= pipe2_time) ||
           all->at(agent) >= when;
  }
  bool sees(Agent agent, Time when) const {
    return (agent == fenced_self && when <= fenced_time) || fenced->at(agent) >= when;
  }
};

struct Access {
  Agent agent;
  Time time;
  std::uint32_t line;
  bool async, strong, copied;
};

// Of the launch before, which a dependent launch knows nothing of until it has waited for it: in no block that there
// is.
constexpr Agent kLaunchBefore = 0xffff0000;

constexpr std::uint32_t kUninitialized = 0, kFromHost = 1, kUnfinished = 2;

struct Cell {
  std::uint32_t writer = kUninitialized;
  std::uint32_t readers = 0;  // 0 none; an access; or, with the highest bit, a set of accesses
};

class AccessLog {
 public:
  explicit AccessLog(bool strict) : strict_(strict), accesses_(2) {
    accesses_.push_back({kLaunchBefore, 1, 0, true, false, false});  // kUnfinished; a launch's end is a fence
  }

  std::uint32_t record(const Actor& actor) {
    const Access& last = accesses_.back();
    if (last.agent != actor.stamp || last.time != actor.time || last.line != actor.line ||
        last.strong != actor.strong || accesses_.size() == 3)
      accesses_.push_back({actor.stamp, actor.time, actor.line, actor.async, actor.strong, actor.copied});
    return static_cast<std::uint32_t>(accesses_.size() - 1);
  }

  void read(Cell* cells, std::size_t count, const Actor& actor, const char* space, std::uint64_t address) {
    const std::uint32_t me = record(actor);
    Cell before, after;
    bool known = false;
    for (std::size_t i = 0; i < count; i++) {
      Cell& cell = cells[i];
      if (!known || cell.writer != before.writer || cell.readers != before.readers) {
        before = cell;
        if (cell.writer == kUninitialized)
          throw Fault("uninitialized", actor.line, "reads " + place(space, address + i) + ", which nothing has written",
                      "write it first, or wait for the copy that does");
        check_writer(cell.writer, actor, "reads", space, address + i);
        after = {cell.writer, add_reader(cell.readers, me, actor)};
        known = true;
      }
      cell = after;
    }
  }

  // `same`: the bytes are those that lie there. Copies of a value that many threads hold may be written by all of them.
  void write(Cell* cells, std::size_t count, const Actor& actor, const char* space, std::uint64_t address,
             bool same = false) {
    const std::uint32_t me = record(actor);
    Cell before;
    bool known = false;
    for (std::size_t i = 0; i < count; i++) {
      Cell& cell = cells[i];
      if (!known || cell.writer != before.writer || cell.readers != before.readers) {
        before = cell;
        if (cell.writer != kUninitialized && !(same && accesses_[cell.writer].line == actor.line))
          check_writer(cell.writer, actor, "writes", space, address + i);
        check_readers(cell.readers, actor, space, address + i);
        known = true;
      }
      cell = {me, 0};
    }
  }

 private:
  // What has no line was done by the launch before.
  static std::string doing(const char* what, const Access& access) {
    return access.agent == kLaunchBefore
               ? "the launch before has not ended"
               : std::string("the ") + what + " of line " + std::to_string(access.line) + " may be under way";
  }

  static std::string place(const char* space, std::uint64_t address) {
    char text[64];
    std::snprintf(text, sizeof text, "%s 0x%llx", space, static_cast<unsigned long long>(address));
    return text;
  }

  void check_writer(std::uint32_t writer, const Actor& actor, const char* does, const char* space,
                    std::uint64_t address) {
    if (writer == kFromHost) return;
    const Access& w = accesses_[writer];
    if (w.strong && actor.strong) return;
    if (!actor.knows(w.agent, w.time))
      throw Fault("race", actor.line, std::string(does) + " " + place(space, address) + " while " + doing("write", w),
                  "wait for it: a barrier, an mbarrier's phase, the group's wait, or griddepcontrol.wait is missing");
    if (actor.async && !w.async && !(w.copied && !strict_) && actor.fenced && !actor.sees(w.agent, w.time))
      throw Fault("proxy", actor.line,
                  std::string(does) + " " + place(space, address) + " asynchronously, and the write of line " +
                      std::to_string(w.line) + " was made through the generic proxy",
                  "put a fence.proxy.async between them");
  }

  void check_reader(std::uint32_t reader, const Actor& actor, const char* space, std::uint64_t address) {
    const Access& r = accesses_[reader];
    if (r.strong && actor.strong) return;
    if (!actor.knows(r.agent, r.time))
      throw Fault("race", actor.line, "writes " + place(space, address) + " while " + doing("read", r),
                  "wait for the reader: a barrier, an mbarrier's phase, the group's wait, or griddepcontrol.wait is "
                  "missing");
  }

  void check_readers(std::uint32_t readers, const Actor& actor, const char* space, std::uint64_t address) {
    if (readers == 0) return;
    if (!(readers & kSet)) return check_reader(readers, actor, space, address);
    for (const std::uint32_t reader : sets_[readers & ~kSet]) check_reader(reader, actor, space, address);
  }

  // The set with one more. Who is ordered before the new reader is left out: who comes after that one comes after both.
  std::uint32_t add_reader(std::uint32_t readers, std::uint32_t me, const Actor& actor) {
    if (readers == 0 || readers == me) return me;
    const std::uint64_t key = std::uint64_t{readers} << 32 | me;
    if (const auto known = with_one_more_.find(key); known != with_one_more_.end()) return known->second;
    std::vector<std::uint32_t> kept;
    const auto keep = [&](std::uint32_t reader) {
      const Access& r = accesses_[reader];
      if (!actor.knows(r.agent, r.time) || (r.strong && !actor.strong)) kept.push_back(reader);
    };
    if (readers & kSet)
      for (const std::uint32_t reader : sets_[readers & ~kSet]) keep(reader);
    else
      keep(readers);
    std::uint32_t result = me;
    if (!kept.empty()) {
      kept.push_back(me);
      sets_.push_back(std::move(kept));
      result = kSet | static_cast<std::uint32_t>(sets_.size() - 1);
    }
    with_one_more_.emplace(key, result);
    return result;
  }

  static constexpr std::uint32_t kSet = 1u << 31;

  bool strict_;
  std::vector<Access> accesses_;
  std::vector<std::vector<std::uint32_t>> sets_;
  std::unordered_map<std::uint64_t, std::uint32_t> with_one_more_;
};

}  // namespace ptx
