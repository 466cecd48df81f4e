#include "model/explore.hpp"

#include <chrono>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>

#include "model/arena.hpp"
#include "model/fingerprints.hpp"

namespace tsrun::model {

namespace {

// An assertion or a wild pointer inside the scheduler ends one event, not the search: what it leaves behind is in the
// arena, which is put back.
sigjmp_buf jump;
volatile std::sig_atomic_t may_jump = 0;
char crash[512];

[[noreturn]] void leave_event() {
  if (may_jump == 0) std::abort();
  may_jump = 0;
  siglongjmp(jump, 1);
}

void on_signal(int signal) {
  std::snprintf(crash, sizeof crash, "signal %d", signal);
  if (may_jump == 0) std::_Exit(128 + signal);
  leave_event();
}

template <typename Do>
std::optional<std::string> what_breaks(Do&& act) {
  if (sigsetjmp(jump, 1) != 0) {
    Arena::leave();
    return std::string(crash);
  }
  may_jump = 1;
  std::string what;
  bool is_broken = false;
  {
    const Arena::Use use;
    try {
      act();
    } catch (const std::exception& error) {
      std::snprintf(crash, sizeof crash, "%s", error.what());
      is_broken = true;
    }
  }
  may_jump = 0;
  if (!is_broken) return std::nullopt;
  return std::string(crash);
}

World& begin(const Configuration& configuration, Fault fault) {
  Arena::reset();
  const Arena::Use use;
  return *new World(configuration, fault);  // NOLINT: the arena's
}

struct Frame {
  Snapshot snapshot;
  std::vector<Event> events;
  std::size_t next = 0;
};

class Search {
 public:
  Search(const Configuration& configuration, Fault fault, std::int64_t most_states, bool prints_progress)
      : configuration_(configuration), fault_(fault), most_states_(most_states), prints_progress_(prints_progress) {}

  Searched run();

 private:
  bool enter();  // the state that the arena holds, at depth_; false when it was seen
  bool ends_fairly(std::int32_t steps_at_once, Fingerprints& known);
  void report(const std::string& what, std::vector<Event> tail = {});
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count(); }

  const Configuration& configuration_;
  const Fault fault_;
  const std::int64_t most_states_;
  const bool prints_progress_;
  World* world_ = nullptr;
  std::vector<Frame> frames_;  // as deep as the search ever was
  std::size_t depth_ = 0;
  std::vector<Event> path_;
  Fingerprints seen_;
  Fingerprints ends_fast_;
  Fingerprints ends_slowly_;
  Snapshot before_walk_;
  Searched result_;
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

void Search::report(const std::string& what, std::vector<Event> tail) {
  Found found{what, path_};
  found.path.insert(found.path.end(), tail.begin(), tail.end());
  result_.found = std::move(found);
}

// From here on, when nobody comes any more and nothing fails, everybody's tokens are made: with `steps_at_once` under
// way and no draft accepted. known: from where this was seen before.
bool Search::ends_fairly(std::int32_t steps_at_once, Fingerprints& known) {
  constexpr std::size_t most_events = 600;
  std::vector<Event> walk;
  std::vector<std::uint64_t> passed;
  bool is_known = false;
  while (!world_->is_over() && !is_known) {
    if (walk.size() > most_events) {
      report("requests do not end when nothing disturbs them", walk);
      return false;
    }
    Event event{Event::Kind::commit};
    if (world_->device().num_running() < steps_at_once && !world_->planned_nothing()) {
      event = {Event::Kind::plan};
    } else if (world_->device().num_transfers() > 0) {
      event = {Event::Kind::moved};
    }
    walk.push_back(event);
    if (const auto what = what_breaks([&] { world_->apply(event); })) {
      report(*what, walk);
      return false;
    }
    std::uint64_t fingerprint = 0;
    what_breaks([&] { fingerprint = world_->fingerprint(); });
    is_known = known.contains(fingerprint);
    if (!is_known) passed.push_back(fingerprint);
  }
  for (const std::uint64_t fingerprint : passed) known.insert(fingerprint);
  return true;
}

bool Search::enter() {
  std::uint64_t fingerprint = 0;
  what_breaks([&] { fingerprint = world_->fingerprint(); });
  if (!seen_.insert(fingerprint)) return false;
  ++result_.states;
  if (depth_ == frames_.size()) frames_.emplace_back();
  Frame& frame = frames_[depth_++];
  Arena::save(frame.snapshot);
  world_->events(frame.events);
  frame.next = 0;
  result_.depth = std::max(result_.depth, depth_);
  if (!ends_fast_.contains(fingerprint)) {
    if (!ends_fairly(configuration_.limits.depth, ends_fast_)) return false;
    ends_fast_.insert(fingerprint);
    Arena::restore(frame.snapshot);
  }
  if (configuration_.limits.depth > 1 && !ends_slowly_.contains(fingerprint)) {
    if (!ends_fairly(1, ends_slowly_)) return false;
    ends_slowly_.insert(fingerprint);
    Arena::restore(frame.snapshot);
  }
  if (prints_progress_ && result_.states % 100000 == 0) {
    std::printf("  %s: %lld states, %lld transitions, depth %zu, %.0f s\n", configuration_.name.c_str(),
                static_cast<long long>(result_.states), static_cast<long long>(result_.transitions), depth_, seconds());
    std::fflush(stdout);
  }
  return true;
}

Searched Search::run() {
  world_ = &begin(configuration_, fault_);
  enter();
  while (depth_ > 0 && !result_.found) {
    Frame& frame = frames_[depth_ - 1];
    if (frame.next == frame.events.size()) {
      --depth_;
      if (!path_.empty()) path_.pop_back();
      continue;
    }
    const Event event = frame.events[frame.next++];
    Arena::restore(frame.snapshot);
    path_.push_back(event);
    ++result_.transitions;
    if (const auto what = what_breaks([&] { world_->apply(event); })) {
      report(*what);
      break;
    }
    if (!enter()) path_.pop_back();
    if (result_.states >= most_states_) {
      result_.is_complete = false;
      break;
    }
  }
  result_.seconds = seconds();
  return std::move(result_);
}

// What a path breaks, if all of its events are possible when their turn comes; those that are not are left out.
std::optional<Found> replay(const Configuration& configuration, Fault fault, const std::vector<Event>& path,
                            std::size_t without) {
  World& world = begin(configuration, fault);
  Found found;
  for (std::size_t at = 0; at < path.size(); ++at) {
    if (at == without || !world.is_possible(path[at])) continue;
    found.path.push_back(path[at]);
    if (const auto what = what_breaks([&] { world.apply(path[at]); })) {
      found.what = *what;
      return found;
    }
  }
  return std::nullopt;
}

}  // namespace

Searched explore(const Configuration& configuration, Fault fault, std::int64_t most_states, bool prints_progress) {
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE}) {
    struct sigaction action{};
    action.sa_handler = on_signal;
    action.sa_flags = SA_NODEFER;
    sigaction(signal, &action, nullptr);
  }
  return Search(configuration, fault, most_states, prints_progress).run();
}

Found shortened(const Configuration& configuration, Fault fault, Found found) {
  // What is said may name other pages; its first words are enough to know it again.
  const auto kind = [](const std::string& what) { return what.substr(0, what.find_first_of("0123456789")); };
  for (bool is_shorter = true; is_shorter;) {
    is_shorter = false;
    for (std::size_t at = found.path.size(); at-- > 0;) {
      std::optional<Found> shorter = replay(configuration, fault, found.path, at);
      if (!shorter || kind(shorter->what) != kind(found.what) || shorter->path.size() >= found.path.size()) continue;
      found = std::move(*shorter);
      is_shorter = true;
      at = std::min(at, found.path.size());
    }
  }
  return found;
}

}  // namespace tsrun::model

// Instead of the C library's, which would end the program.
extern "C" [[noreturn]] void __assert_fail(const char* expression, const char* file, unsigned line,
                                           const char*) noexcept {
  std::snprintf(tsrun::model::crash, sizeof tsrun::model::crash, "assertion at %s:%u: %s", file, line, expression);
  if (tsrun::model::may_jump == 0) std::fprintf(stderr, "%s\n", tsrun::model::crash);
  tsrun::model::leave_event();
}
