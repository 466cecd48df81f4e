// Memory that the ranks of one host share: a segment, and groups of ranks that meet in it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tsk {

// A POSIX shared memory segment with a cell for each rank in each area. One rank creates it, the others open it; once
// all have, its name goes. A rank holds a lock on its byte of the file as long as it takes part: the system lets go
// of it however the process ends, so that the others can tell.
class Segment {
 public:
  static constexpr std::int64_t slot_bytes = 256 * 1024;
  // Two slots that take turns, behind a line of flags.
  struct Cell {
    alignas(64) std::atomic<std::uint32_t> met;  // how often the rank has come to a meeting
    std::atomic<std::uint32_t> waiting;          // how many ranks sleep until it comes
    alignas(64) std::byte slots[2][slot_bytes];
  };
  static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

  // Both throw std::system_error: without room for it, or permission.
  static std::shared_ptr<Segment> create(const std::string& name, int num_ranks, int num_areas);
  static std::shared_ptr<Segment> open(const std::string& name, int num_ranks, int num_areas, int rank);
  // Takes its name away, if it has one.
  static void unlink(const std::string& name);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  int num_ranks() const { return num_ranks_; }
  int num_areas() const { return num_areas_; }
  Cell& cell(int area, int rank) const { return cells_[static_cast<std::int64_t>(area) * num_ranks_ + rank]; }
  // Whether another rank takes part.
  bool has(int rank) const;
  // From now on this rank does not take part. The memory stays until nobody needs it.
  void leave();

 private:
  Segment(int file, int num_ranks, int num_areas, int rank);

  std::atomic<int> file_;
  const int num_ranks_, num_areas_;
  Cell* cells_ = nullptr;
};

// The ranks of an axis, this one among them, in the axis' order. All make the same collectives in the same order.
class RankGroup {
 public:
  // A lone rank, which never meets anybody.
  RankGroup() = default;
  // members: of the segment's ranks; rank: this one's place among them. A rank has one group in an area, which others
  // may use that have no rank in common with it. spins: how often it looks for the others before it sleeps.
  RankGroup(std::shared_ptr<Segment> segment, int area, const std::vector<int>& members, int rank, int spins,
            double timeout_seconds);

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(members_.size()); }
  // Of each member, one of its slots: 0 or 1.
  std::byte* const* slots(int which) const { return slots_[which].data(); }
  // The slot for the next piece of a collective; who fills it says so when all that read or fill it are done.
  int turn() const { return turn_; }
  void set_turn(int turn) { turn_ = turn; }

  // Waits until all have come. When one has ended, or does not come in time, this group and its meetings have failed.
  void meet();
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  // What went wrong.
  const std::string& failure() const { return failure_; }

 private:
  void wait_for(int member);
  void fail(const std::string& what);

  std::shared_ptr<Segment> segment_;
  std::vector<int> members_{0};
  std::vector<Segment::Cell*> cells_;
  std::vector<std::byte*> slots_[2];
  int rank_ = 0;
  int turn_ = 0;
  int spins_ = 0;
  double timeout_seconds_ = 0;
  std::uint32_t meetings_ = 0;
  std::atomic<bool> failed_{false};
  std::string failure_;
};

}  // namespace tsk
