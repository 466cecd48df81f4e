#include "shared_memory.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <system_error>

#include "wait.hpp"

namespace tsk {
namespace {

constexpr long look_nanoseconds = 50'000'000;  // how often who sleeps looks whether the other still lives

// Between processes: without the private flag.
void sleep_while(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  const timespec limit{0, look_nanoseconds};
  syscall(SYS_futex, &value, FUTEX_WAIT, old, &limit, nullptr, 0);
}
void wake_all(const std::atomic<std::uint32_t>& value) {
  syscall(SYS_futex, &value, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

[[noreturn]] void refuse(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

int checked(int file, const std::string& name) {
  if (file < 0) refuse(errno, "shared memory `" + name + "`");
  return file;
}

// Of an open file description, not of the process: ranks may be threads of one.
struct flock lock_of(int rank) {
  struct flock lock{};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

}  // namespace

std::shared_ptr<Segment> Segment::create(const std::string& name, int num_ranks, int num_areas) {
  const int file = checked(shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, S_IRUSR | S_IWUSR), name);
  try {
    // All of it now: where there is no room, the first touch would end the process.
    const auto size = static_cast<off_t>(sizeof(Cell)) * num_ranks * num_areas;
    if (const int error = posix_fallocate(file, 0, size)) {
      close(file);
      refuse(error, "shared memory of " + std::to_string(size) + " bytes");
    }
    return std::shared_ptr<Segment>(new Segment(file, num_ranks, num_areas, 0));
  } catch (...) {
    shm_unlink(name.c_str());
    throw;
  }
}

std::shared_ptr<Segment> Segment::open(const std::string& name, int num_ranks, int num_areas, int rank) {
  const int file = checked(shm_open(name.c_str(), O_RDWR, 0), name);
  return std::shared_ptr<Segment>(new Segment(file, num_ranks, num_areas, rank));
}

void Segment::unlink(const std::string& name) { shm_unlink(name.c_str()); }

Segment::Segment(int file, int num_ranks, int num_areas, int rank)
    : file_(file), num_ranks_(num_ranks), num_areas_(num_areas) {
  const std::size_t size = sizeof(Cell) * num_ranks * num_areas;
  struct stat found{};
  struct flock lock = lock_of(rank);
  void* memory = MAP_FAILED;
  errno = 0;
  if (fstat(file, &found) || found.st_size != static_cast<off_t>(size) || fcntl(file, F_OFD_SETLK, &lock) ||
      (memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)) == MAP_FAILED) {
    const int error = errno ? errno : EINVAL;
    close(file);
    refuse(error, "shared memory");
  }
  cells_ = static_cast<Cell*>(memory);  // zeros, which is how flags begin
}

Segment::~Segment() {
  leave();
  munmap(cells_, sizeof(Cell) * num_ranks_ * num_areas_);
}

bool Segment::has(int rank) const {
  struct flock lock = lock_of(rank);
  return fcntl(file_, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

void Segment::leave() {
  const int file = file_.exchange(-1);
  if (file < 0) return;
  struct flock all{};  // the mapping keeps the file, and so its locks, open
  all.l_type = F_UNLCK;
  all.l_whence = SEEK_SET;
  fcntl(file, F_OFD_SETLK, &all);
  close(file);
}

RankGroup::RankGroup(std::shared_ptr<Segment> segment, int area, const std::vector<int>& members, int rank, int spins,
                     double timeout_seconds)
    : segment_(std::move(segment)), members_(members), rank_(rank), spins_(spins), timeout_seconds_(timeout_seconds) {
  const auto outside = [](int index, int count) { return index < 0 || index >= count; };
  if (outside(area, segment_->num_areas()) || outside(rank, size()) ||
      std::any_of(members.begin(), members.end(), [&](int m) { return outside(m, segment_->num_ranks()); }))
    throw std::invalid_argument("the segment has no such area or ranks");
  for (const int member : members) {
    cells_.push_back(&segment_->cell(area, member));
    for (int which : {0, 1}) slots_[which].push_back(cells_.back()->slots[which]);
  }
}

void RankGroup::meet() {
  if (failed() || size() == 1) return;
  Segment::Cell& mine = *cells_[rank_];
  mine.met.store(++meetings_);
  if (mine.waiting.load()) wake_all(mine.met);  // in one order with what a sleeper does: it sees the flag, or is seen
  for (int member = 0; member < size() && !failed(); ++member)
    if (member != rank_) wait_for(member);
}

void RankGroup::wait_for(int member) {
  Segment::Cell& cell = *cells_[member];
  const auto there = [&](std::uint32_t met) { return static_cast<std::int32_t>(met - meetings_) >= 0; };
  for (int i = 0; i < spins_; ++i) {
    if (there(cell.met.load(std::memory_order_acquire))) return;
    spin_pause();
  }
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  for (;;) {
    cell.waiting.fetch_add(1);
    const std::uint32_t met = cell.met.load();
    if (!there(met)) sleep_while(cell.met, met);
    cell.waiting.fetch_sub(1);
    if (there(cell.met.load())) return;
    const std::chrono::duration<double> waited = Clock::now() - begin;
    const std::string name = "rank " + std::to_string(members_[member]);
    if (waited.count() * 1e9 < look_nanoseconds) continue;
    const bool lives = segment_->has(members_[member]);
    if (there(cell.met.load())) return;  // it came, and then went
    if (!lives) return fail(name + " has ended");
    if (waited.count() > timeout_seconds_) return fail(name + " has not come to a collective in time");
  }
}

void RankGroup::fail(const std::string& what) {
  failure_ = what;
  failed_.store(true, std::memory_order_relaxed);  // others read it behind a barrier of the team
}

}  // namespace tsk
