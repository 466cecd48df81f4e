// Vector clocks: who is known to have come how far. An agent is a thread, or a stream of asynchronous work: a thread's
// tensor pipe, its bulk copies, the phases of an mbarrier. Its work up to a time is ordered before whoever knows that
// time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace ptx {

// The block that it belongs to in the upper 16 bits, its number there in the lower.
using Agent = std::uint32_t;
using Time = std::uint32_t;

class Clock {
 public:
  Time at(Agent agent) const {
    for (const auto& [block, times] : blocks_)
      if (block == agent >> 16) {
        const std::size_t i = agent & 0xffff;
        return i < times.size() ? times[i] : 0;
      }
    return 0;
  }

  void raise(Agent agent, Time time) {
    std::vector<Time>& times = of(agent >> 16);
    const std::size_t i = agent & 0xffff;
    if (times.size() <= i) times.resize(i + 1);
    times[i] = std::max(times[i], time);
  }

  void join(const Clock& other) {
    for (const auto& [block, theirs] : other.blocks_) {
      std::vector<Time>& times = of(block);
      if (times.size() < theirs.size()) times.resize(theirs.size());
      for (std::size_t i = 0; i < theirs.size(); i++) times[i] = std::max(times[i], theirs[i]);
    }
  }

 private:
  std::vector<Time>& of(std::uint32_t block) {
    for (auto& [known, times] : blocks_)
      if (known == block) return times;
    return blocks_.emplace_back(block, std::vector<Time>()).second;
  }

  std::vector<std::pair<std::uint32_t, std::vector<Time>>> blocks_;
};

using SharedClock = std::shared_ptr<const Clock>;

inline const SharedClock& no_clock() {
  static const SharedClock none = std::make_shared<const Clock>();
  return none;
}

// What a thread knows. `fenced` is the part whose generic writes a proxy fence has made visible to asynchronous work;
// `tensor` the part that tensor-memory operations are ordered after, by tcgen05.fence::after_thread_sync.
struct ThreadClock {
  SharedClock all = no_clock(), fenced = no_clock(), tensor = no_clock();
  Time now = 1, fenced_now = 0;
  // Of memory fences: what relaxed stores release, and what relaxed loads saw but no fence has taken yet.
  SharedClock released = no_clock(), seen = no_clock();
  SharedClock released_fenced = no_clock();
};

// A pair of clocks that a synchronizing object hands on.
struct Handed {
  SharedClock all = no_clock(), fenced = no_clock();
};

// What a synchronizing object gathers until its phase completes.
struct Gathered {
  Clock all, fenced;

  // `thread` releases all that it knows and did; what it does from now on is later.
  void take(Agent agent, ThreadClock& thread) {
    note(agent, thread);
    thread.now++;
  }
  void note(Agent agent, const ThreadClock& thread) {
    all.join(*thread.all);
    all.raise(agent, thread.now);
    fenced.join(*thread.fenced);
    fenced.raise(agent, thread.fenced_now);
  }
  Handed hand() const { return {std::make_shared<const Clock>(all), std::make_shared<const Clock>(fenced)}; }
};

// Joins clocks that many threads share: threads of a warp mostly join the same two.
class Joiner {
 public:
  SharedClock operator()(const SharedClock& a, const SharedClock& b) {
    if (a == b || b == no_clock()) return a;
    if (a == no_clock()) return b;
    for (const Join& known : known_)
      if (known.a == a && known.b == b) return known.joined;
    auto joined = std::make_shared<Clock>(*a);
    joined->join(*b);
    known_[next_] = {a, b, std::move(joined)};
    const SharedClock& result = known_[next_].joined;
    next_ = (next_ + 1) % known_.size();
    return result;
  }

  void acquire(ThreadClock& thread, const Handed& handed) {
    thread.all = (*this)(thread.all, handed.all);
    thread.fenced = (*this)(thread.fenced, handed.fenced);
  }

 private:
  struct Join {
    SharedClock a, b, joined;
  };
  std::array<Join, 8> known_;
  std::size_t next_ = 0;
};

}  // namespace ptx
