// The machine: clusters of blocks of warps that run a kernel, with what they share.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "clock.hpp"
#include "fault.hpp"
#include "program.hpp"
#include "shadow.hpp"

namespace ptx {

using Mask = std::uint32_t;

template <class F>
void each_lane(Mask mask, F&& f) {
  for (; mask; mask &= mask - 1) f(static_cast<unsigned>(__builtin_ctz(mask)));
}

// Memory of the host that a kernel sees as global memory.
struct Buffer {
  std::uint64_t address = 0;  // as the kernel sees it
  std::uint8_t* bytes = nullptr;
  std::uint64_t size = 0;
  bool writable = false;
  std::vector<Cell> cells;  // of writable and unfinished ones alone: no access to the others can race
};

// A tensor of global memory as TMA addresses it: dimensions from the innermost on.
struct TensorMap {
  std::uint64_t address = 0;
  std::uint32_t element_bytes = 0, swizzle = 0;  // bytes of the swizzle's span, 0 for none
  bool fill_nan = false;
  std::vector<std::uint64_t> sizes, strides;  // strides in bytes; the first is that of elements
  std::vector<std::uint32_t> box;
};

struct Mbarrier {
  std::uint32_t count = 0, pending = 0;
  std::int64_t bytes = 0;  // transactions that the phase still expects
  std::uint64_t phase = 0;
  Agent agent = 0;  // its phases: that they are over, and the copies that complete in them
  Gathered gathered;
  std::vector<Handed> handed;  // by each phase
  Agent initializer = 0;
  Time initialized = 0;
  std::uint32_t line = 0;
  bool fenced = false;                     // the initialization is visible to asynchronous work and to other blocks
  std::uint64_t observed = 0, copied = 0;  // phases below these were waited for, have copies in them
  std::uint32_t copy_line = 0;
  std::uint64_t committed = 0;  // phases below this have signals of another block's tcgen05.commit
  std::uint32_t commit_line = 0;
};

struct Warp;

struct NamedBarrier {
  std::uint32_t expected = 0, arrived = 0, line = 0;
  bool counted = false;  // the number of threads was given
  Gathered gathered;
  std::vector<std::pair<Warp*, unsigned>> waiting;
};

// Asynchronous work in groups: a commit closes one, a wait is for all but the newest.
struct Groups {
  Agent agent = ~0u;
  Time open = 1;      // the group that is open
  bool used = false;  // it has work in it
  Time waited = 0;
  std::uint32_t line = 0;
};

struct LaneStreams {
  Groups copies;                   // cp.async
  Groups bulk_reads, bulk_writes;  // cp.async.bulk that reads shared memory: when it was read, and when it is written
  Agent pipe = ~0u;                // tcgen05.mma and .cp
  Time serial = 0, committed = 0;
  SharedClock issued = no_clock(), issued_fenced = no_clock();
  Time issued_now = 0, issued_fenced_now = 0;
};

struct Block;

struct Warp {
  Block* block = nullptr;
  unsigned number = 0;
  Mask live = 0, blocked = 0, polling = 0, gathered = 0;
  Mask waited = 0;  // for the launch before
  std::array<std::uint32_t, 32> pc{};
  std::vector<std::uint64_t> registers;  // [register][lane]
  std::array<ThreadClock, 32> clocks;
  std::array<LaneStreams, 32> streams;
  std::array<std::uint64_t, 32> cluster_phase{};
  Mask cluster_arrived = 0;
  std::vector<std::vector<std::uint8_t>> local;

  // Registers that asynchronous work still reads or writes: by which group of wgmma, or kLoading.
  std::vector<std::uint32_t> pending, touched;  // touched: the step that last computed it or with it
  std::vector<std::int32_t> pending_list;
  std::uint32_t steps = 1, fenced_step = 0;
  Groups products;  // wgmma
  std::uint64_t num_products = 0;
  Agent loads = ~0u, stores = ~0u;  // tcgen05.ld and .st
  Time load_serial = 0, store_serial = 0, loads_waited = 0, stores_waited = 0;

  std::uint64_t& at(std::int32_t number, unsigned lane) {
    return registers[static_cast<std::size_t>(number) * 32 + lane];
  }
  Agent thread(unsigned lane) const;
};

struct Cluster;

struct Block {
  Cluster* cluster = nullptr;
  std::uint32_t number = 0, rank = 0;  // in the grid, in the cluster
  std::array<std::uint32_t, 3> index{}, index_in_cluster{};
  std::vector<std::uint8_t> shared;  // from kSharedBase on
  std::vector<Cell> cells;
  std::vector<bool> is_barrier;
  std::unordered_map<std::uint32_t, Mbarrier> mbarriers;  // by offset
  std::vector<Mbarrier> invalidated;
  std::array<NamedBarrier, 16> barriers;
  std::vector<std::unique_ptr<Warp>> warps;
  std::uint32_t live_threads = 0, next_agent = 0;

  std::vector<std::uint32_t> tensor;  // [128][512]
  std::vector<Cell> tensor_cells;
  std::array<bool, 512> allocated{};
  bool relinquished = false;
  Agent allocator = 0;  // of tensor memory, the last
  Time allocated_at = 0;
  std::uint32_t allocation_line = 0;

  Agent new_agent() { return number << 16 | next_agent++; }
  Agent agent_of(Groups& groups) { return groups.agent == ~0u ? groups.agent = new_agent() : groups.agent; }
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  std::array<std::uint32_t, 3> index{};
  std::uint32_t arrived = 0;
  std::uint64_t phase = 0;
  Gathered gathered;
  Handed handed;
  std::uint32_t live_threads() const {
    std::uint32_t sum = 0;
    for (const auto& block : blocks) sum += block->live_threads;
    return sum;
  }
};

inline Agent Warp::thread(unsigned lane) const { return block->number << 16 | (number * 32 + lane); }

// Where an address leads.
struct Place {
  std::uint8_t* bytes = nullptr;
  Cell* cells = nullptr;  // null where nothing is tracked
  const char* space = "";
  Block* block = nullptr;    // of shared memory
  std::uint32_t offset = 0;  // in it, from kSharedBase on
  bool writable = true;
  std::uint64_t location = 0;  // as faults name it
};

enum class Space : std::uint8_t { generic, global, shared, local, parameter };

struct Launch {
  std::array<std::uint32_t, 3> grid{1, 1, 1}, block{1, 1, 1}, cluster{1, 1, 1};
  std::uint32_t dynamic_shared = 0;
  bool strict = true;
  std::uint64_t max_instructions = 0;
  bool dependent = false;  // begins while the launch before still runs
};

struct Counts {
  std::uint64_t instructions = 0, products = 0, copies = 0;
};

class Machine {
 public:
  Machine(Program& program, const std::string& kernel, const Launch& launch);

  // Buffers of the host, then the arguments in order.
  std::uint64_t add_buffer(std::uint8_t* bytes, std::uint64_t size, bool writable, bool initialized);
  std::uint32_t add_map(TensorMap map);
  // What the launch before may still read and write.
  void leave_unfinished(std::size_t buffer, std::uint64_t offset, std::uint64_t size);
  void set_parameter(std::size_t i, const void* bytes, std::size_t size);
  std::size_t num_buffers() const { return buffers_.size(); }
  std::size_t num_parameters() const { return kernel_.parameters.size(); }
  std::size_t parameter_size(std::size_t i) const { return kernel_.parameters[i].size; }

  Counts run();

  static constexpr std::uint32_t kLoading = ~0u;
  static constexpr char kMapMagic[] = "tensor map of the emulator";

 private:
  using Handler = Mask (Machine::*)(Warp&, const Instr&, Mask);  // the lanes that go on
  struct Entry {
    Handler run;
    // Which lanes must have come: any, all that live, those of the mask in the last operand.
    enum Meets : std::uint8_t { any, all, masked } meets = any;
  };

  // machine.cpp: starting, scheduling and control flow
  void prepare(Instr& instr);
  void check_groups() const;
  std::unique_ptr<Cluster> start_cluster(std::uint32_t number);
  bool step(Warp& warp);
  bool visit(Warp& warp, std::uint32_t most);
  void run_pure(Warp& warp, const Instr& i, Mask lanes);
  void leave(Warp& warp, Mask lanes, std::uint32_t line);
  void check_left(Block& block);
  [[noreturn]] void deadlock();
  std::uint64_t special(const Warp& warp, unsigned lane, Special which) const;

  // operands
  std::uint64_t get(Warp& warp, const Operand& o, unsigned lane);
  void set(Warp& warp, const Operand& o, unsigned lane, std::uint64_t value);
  std::uint64_t address(Warp& warp, const Operand& o, unsigned lane);
  void check_pending(Warp& warp, const Instr& i);
  void mark_touched(Warp& warp, const Operand& o);
  void settle(Warp& warp, std::uint32_t up_to, bool loads);
  void mark_pending(Warp& warp, const Operand& o, std::uint32_t tag);
  void know(Warp& warp, Mask lanes, Agent agent, Time time);

  // memory.cpp
  Space space_of(const Instr& i) const;
  Place find(Warp& warp, unsigned lane, Space space, std::uint64_t address, std::uint64_t size, std::uint32_t line);
  Place find_global(std::uint64_t address, std::uint64_t size, std::uint32_t line);
  Place find_shared(Cluster& cluster, std::uint32_t address, std::uint64_t size, std::uint32_t line);
  void touch(const Place& place, std::uint64_t size, const Actor& actor, bool write, bool same = false);
  void put(const Place& place, const void* bytes, std::uint64_t size, const Actor& actor);
  Actor thread_actor(const Warp& warp, unsigned lane, std::uint32_t line) const;
  Mask load(Warp&, const Instr&, Mask);
  Mask store(Warp&, const Instr&, Mask);
  Mask atomic(Warp&, const Instr&, Mask);
  Mask load_matrix(Warp&, const Instr&, Mask);
  Mask store_matrix(Warp&, const Instr&, Mask);
  Mask copy_async(Warp&, const Instr&, Mask);
  Mask copy_commit(Warp&, const Instr&, Mask);
  Mask copy_wait(Warp&, const Instr&, Mask);
  Mask copy_arrive(Warp&, const Instr&, Mask);
  Mask map_address(Warp&, const Instr&, Mask);
  Mask is_space(Warp&, const Instr&, Mask);

  // synchronize.cpp
  Mask branch(Warp&, const Instr&, Mask);
  Mask exit(Warp&, const Instr&, Mask);
  Mask trap(Warp&, const Instr&, Mask);
  Mask nothing(Warp&, const Instr&, Mask);
  Mask depend(Warp&, const Instr&, Mask);
  Mask policy(Warp&, const Instr&, Mask);
  Mask unpack(Warp&, const Instr&, Mask);
  Mask shuffle(Warp&, const Instr&, Mask);
  Mask vote(Warp&, const Instr&, Mask);
  Mask reduce(Warp&, const Instr&, Mask);
  Mask match(Warp&, const Instr&, Mask);
  Mask elect(Warp&, const Instr&, Mask);
  Mask active(Warp&, const Instr&, Mask);
  Mask barrier(Warp&, const Instr&, Mask);
  Mask warp_barrier(Warp&, const Instr&, Mask);
  Mask cluster_barrier(Warp&, const Instr&, Mask);
  Mask fence(Warp&, const Instr&, Mask);
  void complete(Block& block, NamedBarrier& barrier);
  void complete(Cluster& cluster);
  Mask mbarrier(Warp&, const Instr&, Mask);
  Mbarrier& find_mbarrier(Cluster& cluster, std::uint32_t address, const Actor& actor, bool remote);
  void arrive(Mbarrier& b, std::uint32_t count, std::uint32_t line);
  void transact(Mbarrier& b, std::int64_t bytes, std::uint32_t line);
  void try_complete(Mbarrier& b);
  bool wait_for(Mbarrier& b, ThreadClock& clock, std::uint64_t value, bool parity, bool acquires, std::uint32_t line);

  // bulk.cpp
  Mask bulk_copy(Warp&, const Instr&, Mask);
  Mask bulk_commit(Warp&, const Instr&, Mask);
  Mask bulk_wait(Warp&, const Instr&, Mask);
  const TensorMap& find_map(Warp& warp, unsigned lane, std::uint64_t address, std::uint32_t line);
  void bulk_tensor(Warp&, unsigned lane, const Instr&);
  void bulk_linear(Warp&, unsigned lane, const Instr&);
  Actor copy_actor(Warp& warp, unsigned lane, std::uint32_t line, Agent stamp, Time time) const;

  // matrix.cpp
  struct Matrix;
  struct SharedMatrix;
  Mask mma(Warp&, const Instr&, Mask);
  Mask wgmma(Warp&, const Instr&, Mask);
  Mask wgmma_fence(Warp&, const Instr&, Mask);
  Mask wgmma_commit(Warp&, const Instr&, Mask);
  Mask wgmma_wait(Warp&, const Instr&, Mask);
  void read_matrix(Cluster& cluster, std::uint32_t rank, const SharedMatrix& m, std::vector<float>& out,
                   const std::vector<Actor>& actors);

  // tensor_memory.cpp
  Mask tensor_allocate(Warp&, const Instr&, Mask);
  Mask tensor_load(Warp&, const Instr&, Mask);
  Mask tensor_store(Warp&, const Instr&, Mask);
  Mask tensor_wait(Warp&, const Instr&, Mask);
  Mask tensor_fence(Warp&, const Instr&, Mask);
  Mask tensor_mma(Warp&, const Instr&, Mask);
  Mask tensor_copy(Warp&, const Instr&, Mask);
  Mask tensor_commit(Warp&, const Instr&, Mask);
  void tensor_touch(Block& block, unsigned row, unsigned column, unsigned count, const Actor& actor, bool write);
  Actor tensor_actor(Warp& warp, unsigned lane, std::uint32_t line, Agent stamp, Time time) const;
  Actor pipe_actor(Warp& warp, unsigned lane, std::uint32_t line);
  template <class F>
  void tensor_registers(Warp& warp, const Instr& i, const Operand& registers, std::uint32_t at, bool load, F&& each);

  static const std::unordered_map<std::string, Entry>& entries();

  Program& program_;
  Kernel kernel_;
  Launch launch_;
  std::vector<Entry> table_;
  std::deque<Buffer> buffers_;
  std::vector<TensorMap> maps_;
  std::vector<std::uint8_t> parameters_;
  AccessLog log_;
  Joiner join_;
  Counts counts_;
  std::vector<std::unique_ptr<Cluster>> clusters_;  // those that run
  bool tracks_registers_ = false;
  std::uint64_t polls_ = 0;
  std::unordered_map<std::uint64_t, Gathered> released_;  // by address: what atomic accesses hand on
};

}  // namespace ptx
