// Starting clusters, choosing which lanes of which warp run next, operands, and what must hold at the end.
#include "machine.hpp"

#include <algorithm>
#include <cstring>
#include <set>

#include "arithmetic.hpp"

namespace ptx {

namespace {

constexpr std::uint16_t kPure = 0xffff;

std::uint64_t masked(std::uint64_t x, int width) {
  return width >= 64 || width == 0 ? x : x & ((std::uint64_t{1} << width) - 1);
}

}  // namespace

const std::unordered_map<std::string, Machine::Entry>& Machine::entries() {
  using M = Machine;
  constexpr auto masked = Entry::masked;
  static const std::unordered_map<std::string, Entry> table = {
      {"bra", {&M::branch}},
      {"exit", {&M::exit}},
      {"ret", {&M::exit}},
      {"trap", {&M::trap}},
      {"mov", {&M::unpack}},
      {"ld", {&M::load}},
      {"ldu", {&M::load}},
      {"st", {&M::store}},
      {"atom", {&M::atomic}},
      {"red", {&M::atomic}},
      {"ldmatrix", {&M::load_matrix}},
      {"stmatrix", {&M::store_matrix}},
      {"cp.async", {&M::copy_async}},
      {"cp.async.commit_group", {&M::copy_commit}},
      {"cp.async.wait_group", {&M::copy_wait}},
      {"cp.async.wait_all", {&M::copy_wait}},
      {"cp.async.mbarrier", {&M::copy_arrive}},
      {"mapa", {&M::map_address}},
      {"getctarank", {&M::map_address}},
      {"isspacep", {&M::is_space}},
      {"shfl", {&M::shuffle, masked}},
      {"vote", {&M::vote, masked}},
      {"redux", {&M::reduce, masked}},
      {"match", {&M::match, masked}},
      {"elect", {&M::elect, masked}},
      {"activemask", {&M::active}},
      {"bar", {&M::barrier}},
      {"barrier", {&M::barrier}},
      {"bar.warp", {&M::warp_barrier, masked}},
      {"barrier.cluster", {&M::cluster_barrier}},
      {"fence", {&M::fence}},
      {"membar", {&M::fence}},
      {"mbarrier", {&M::mbarrier}},
      {"cp.async.bulk", {&M::bulk_copy}},
      {"cp.reduce.async.bulk", {&M::bulk_copy}},
      {"cp.async.bulk.commit_group", {&M::bulk_commit}},
      {"cp.async.bulk.wait_group", {&M::bulk_wait}},
      {"cp.async.bulk.prefetch", {&M::nothing}},
      {"mma", {&M::mma}},
      {"wgmma.mma_async", {&M::wgmma}},
      {"wgmma.fence", {&M::wgmma_fence}},
      {"wgmma.commit_group", {&M::wgmma_commit}},
      {"wgmma.wait_group", {&M::wgmma_wait}},
      {"tcgen05.alloc", {&M::tensor_allocate}},
      {"tcgen05.dealloc", {&M::tensor_allocate}},
      {"tcgen05.relinquish_alloc_permit", {&M::tensor_allocate}},
      {"tcgen05.ld", {&M::tensor_load}},
      {"tcgen05.st", {&M::tensor_store}},
      {"tcgen05.wait::ld", {&M::tensor_wait}},
      {"tcgen05.wait::st", {&M::tensor_wait}},
      {"tcgen05.fence::before_thread_sync", {&M::tensor_fence}},
      {"tcgen05.fence::after_thread_sync", {&M::tensor_fence}},
      {"tcgen05.mma", {&M::tensor_mma}},
      {"tcgen05.cp", {&M::tensor_copy}},
      {"tcgen05.commit", {&M::tensor_commit}},
      {"setmaxnreg", {&M::nothing}},
      {"griddepcontrol", {&M::depend}},
      {"prefetch", {&M::nothing}},
      {"prefetchu", {&M::nothing}},
      {"discard", {&M::nothing}},
      {"applypriority", {&M::nothing}},
      {"nanosleep", {&M::nothing}},
      {"pmevent", {&M::nothing}},
      {"createpolicy", {&M::policy}}};
  return table;
}

Machine::Machine(Program& program, const std::string& kernel, const Launch& launch)
    : program_(program), launch_(launch), log_(launch.strict) {
  const auto found = program.kernels.find(kernel);
  if (found == program.kernels.end()) {
    std::string known;
    for (const auto& [name, _] : program.kernels) known += (known.empty() ? "" : ", ") + name;
    throw Fault("launch", 0, "there is no kernel `" + kernel + "`", "the text has " + (known.empty() ? "none" : known));
  }
  kernel_ = found->second;
  if (kernel_.cluster_given) launch_.cluster = {kernel_.cluster[0], kernel_.cluster[1], kernel_.cluster[2]};
  for (int d = 0; d < 3; d++)
    if (launch_.cluster[d] == 0 || launch_.grid[d] == 0 || launch_.grid[d] % launch_.cluster[d])
      throw Fault("launch", 0, "the grid is no multiple of the cluster", "give a grid that clusters divide");
  const std::uint32_t threads = launch_.block[0] * launch_.block[1] * launch_.block[2];
  if (threads == 0 || threads > 1024)
    throw Fault("launch", 0, "a block has " + std::to_string(threads) + " threads", "give 1 to 1024");
  if (kernel_.shared_bytes + launch_.dynamic_shared > 232448)
    throw Fault(
        "launch", 0,
        "a block needs " + std::to_string(kernel_.shared_bytes + launch_.dynamic_shared) + " bytes of shared memory",
        "there are 232448");
  parameters_.assign(kernel_.parameter_bytes + 16, 0);
  for (Instr& instr : kernel_.code) prepare(instr);
  check_groups();
  for (auto& [name, variable] : program.globals) {
    buffers_.push_back({variable.address, variable.bytes.data(), variable.bytes.size(), true, {}});
    buffers_.back().cells.assign(variable.bytes.size(), {kFromHost, 0});
  }
}

void Machine::prepare(Instr& instr) {
  instr.copies = instr.parts[0] == "mov";
  instr.pure = find_pure(instr);
  if (instr.pure) {
    instr.handler = kPure;
    return;
  }
  for (std::size_t n = instr.parts.size(); n > 0; n--) {
    std::string name;
    for (std::size_t i = 0; i < n; i++) name += (i ? "." : "") + instr.parts[i];
    const auto found = entries().find(name);
    if (found == entries().end()) continue;
    Entry entry = found->second;
    // Which instruction a warp runs together is part of its name.
    if (entry.meets == Entry::any && (instr.has("aligned") || name == "bar" || name == "wgmma.mma_async"))
      entry.meets = Entry::all;
    if (name.starts_with("wgmma") || name == "tcgen05.ld") tracks_registers_ = true;
    instr.handler = static_cast<std::uint16_t>(table_.size());
    table_.push_back(entry);
    return;
  }
  throw Fault("unsupported", instr.line, "`" + instr.name() + "` does not run here", "add it to kernels/emulator");
}

void Machine::check_groups() const {
  const Instr* first = nullptr;
  for (const Instr& instr : kernel_.code) {
    if (instr.parts[0] != "tcgen05" || !(instr.has("cta_group::1") || instr.has("cta_group::2"))) continue;
    if (!first) first = &instr;
    if (instr.has("cta_group::2") != first->has("cta_group::2"))
      throw Fault("tensor memory", instr.line,
                  "has another cta_group than the instruction of line " + std::to_string(first->line),
                  "give all of a kernel's the same");
  }
}

std::uint64_t Machine::add_buffer(std::uint8_t* bytes, std::uint64_t size, bool writable, bool initialized) {
  Buffer buffer;
  buffer.address = kBuffers + (std::uint64_t{buffers_.size() + 1} << 36);
  buffer.bytes = bytes;
  buffer.size = size;
  buffer.writable = writable;
  if (writable) buffer.cells.assign(size, {initialized ? kFromHost : kUninitialized, 0});
  buffers_.push_back(std::move(buffer));
  return buffers_.back().address;
}

void Machine::leave_unfinished(std::size_t buffer, std::uint64_t offset, std::uint64_t size) {
  Buffer& b = buffers_.at(buffer);
  if (b.cells.empty()) b.cells.assign(b.size, {kFromHost, 0});
  for (std::uint64_t i = offset; i < offset + size; i++) {
    Cell& cell = b.cells.at(i);
    (cell.writer == kUninitialized ? cell.readers : cell.writer) = kUnfinished;
  }
}

std::uint32_t Machine::add_map(TensorMap map) {
  maps_.push_back(std::move(map));
  return static_cast<std::uint32_t>(maps_.size() - 1);
}

void Machine::set_parameter(std::size_t i, const void* bytes, std::size_t size) {
  std::memcpy(&parameters_[kernel_.parameters[i].offset], bytes,
              std::min<std::size_t>(size, kernel_.parameters[i].size));
}

std::unique_ptr<Cluster> Machine::start_cluster(std::uint32_t number) {
  auto cluster = std::make_unique<Cluster>();
  const auto& size = launch_.cluster;
  const std::uint32_t nx = launch_.grid[0] / size[0], ny = launch_.grid[1] / size[1];
  cluster->index = {number % nx, number / nx % ny, number / nx / ny};
  const std::uint32_t threads = launch_.block[0] * launch_.block[1] * launch_.block[2];
  const std::uint32_t shared = kernel_.shared_bytes + launch_.dynamic_shared;
  for (std::uint32_t rank = 0; rank < size[0] * size[1] * size[2]; rank++) {
    auto block = std::make_unique<Block>();
    block->cluster = cluster.get();
    block->rank = rank;
    block->index_in_cluster = {rank % size[0], rank / size[0] % size[1], rank / size[0] / size[1]};
    for (int d = 0; d < 3; d++) block->index[d] = cluster->index[d] * size[d] + block->index_in_cluster[d];
    block->number = block->index[0] + launch_.grid[0] * (block->index[1] + launch_.grid[1] * block->index[2]);
    block->shared.assign(shared, 0xff);
    block->cells.assign(shared, {});
    block->is_barrier.assign(shared, false);
    block->live_threads = threads;
    block->next_agent = threads;
    for (std::uint32_t first = 0; first < threads; first += 32) {
      auto warp = std::make_unique<Warp>();
      warp->block = block.get();
      warp->number = first / 32;
      warp->live = threads - first >= 32 ? ~0u : (1u << (threads - first)) - 1;
      warp->registers.assign(kernel_.registers.size() * 32, 0);
      if (tracks_registers_) {
        warp->pending.assign(kernel_.registers.size(), 0);
        warp->touched.assign(kernel_.registers.size(), 0);
      }
      if (kernel_.local_bytes) warp->local.assign(32, std::vector<std::uint8_t>(kernel_.local_bytes, 0xff));
      block->warps.push_back(std::move(warp));
    }
    cluster->blocks.push_back(std::move(block));
  }
  return cluster;
}

Counts Machine::run() {
  const std::uint32_t total = launch_.grid[0] / launch_.cluster[0] * (launch_.grid[1] / launch_.cluster[1]) *
                              (launch_.grid[2] / launch_.cluster[2]);
  if (launch_.grid[0] * launch_.grid[1] * launch_.grid[2] > 65535)
    throw Fault("launch", 0, "the grid has more than 65535 blocks", "launch fewer");
  std::uint32_t next = 0, rounds = 0;
  for (;;) {
    bool progress = false;
    for (const auto& cluster : clusters_)
      for (const auto& block : cluster->blocks)
        for (const auto& warp : block->warps)
          if (warp->live) progress |= visit(*warp, 4096);
    std::erase_if(clusters_, [&](const auto& cluster) {
      if (cluster->live_threads()) return false;
      for (const auto& block : cluster->blocks) check_left(*block);
      return true;
    });
    // A cluster may wait for what a later one does: those that take long get company.
    if (next < total && (!progress || clusters_.empty() || ++rounds % 8 == 0)) {
      clusters_.push_back(start_cluster(next++));
      continue;
    }
    if (clusters_.empty()) return counts_;
    if (!progress) deadlock();
  }
}

bool Machine::visit(Warp& warp, std::uint32_t most) {
  bool progress = false;
  for (std::uint32_t n = 0; n < most && warp.live && step(warp); n++) progress = true;
  return progress;
}

bool Machine::step(Warp& warp) {
  Mask ready = warp.live & ~(warp.blocked | warp.polling | warp.gathered);
  if (!ready) {
    ready = warp.polling;
    warp.polling = 0;
    if (!ready) return false;
  }
  std::uint32_t pc = ~0u;
  each_lane(ready, [&](unsigned lane) { pc = std::min(pc, warp.pc[lane]); });
  Mask here = 0;
  each_lane(ready, [&](unsigned lane) { here |= warp.pc[lane] == pc ? 1u << lane : 0; });
  // Lanes that only tried again stay where they are until their turn.
  const Instr& i = kernel_.code[pc];
  Mask lanes = here;
  if (i.guard >= 0) {
    lanes = 0;
    each_lane(here, [&](unsigned lane) { lanes |= (warp.at(i.guard, lane) != 0) != i.guard_negated ? 1u << lane : 0; });
    each_lane(here & ~lanes, [&](unsigned lane) { warp.pc[lane]++; });
    if (!lanes) return true;
  }
  if (++counts_.instructions > launch_.max_instructions)
    throw Fault("deadlock", i.line,
                "after " + std::to_string(launch_.max_instructions) + " instructions the kernel still runs",
                "it spins for ever, or max_instructions is too small");
  warp.steps++;
  if (i.handler == kPure) {
    run_pure(warp, i, lanes);
    each_lane(lanes, [&](unsigned lane) { warp.pc[lane]++; });
    return true;
  }
  const Entry& entry = table_[i.handler];
  if (entry.meets != Entry::any) {
    Mask need = warp.live;
    if (entry.meets == Entry::masked && !i.has("aligned"))
      need &= static_cast<Mask>(get(warp, i.args.back(), static_cast<unsigned>(__builtin_ctz(lanes))));
    Mask together = lanes;
    each_lane(warp.gathered, [&](unsigned lane) { together |= warp.pc[lane] == pc ? 1u << lane : 0; });
    if (need & ~together) {
      warp.gathered |= lanes;
      return true;
    }
    warp.gathered &= ~together;
    lanes = together;
  }
  if (!warp.pending_list.empty()) check_pending(warp, i);
  if (tracks_registers_ && !i.args.empty() && !i.copies && !i.has("mma_async")) mark_touched(warp, i.args[0]);
  const Mask go = (this->*entry.run)(warp, i, lanes);
  each_lane(go, [&](unsigned lane) { warp.pc[lane]++; });
  return go || here != lanes || !(warp.polling & lanes);
}

void Machine::run_pure(Warp& warp, const Instr& i, Mask lanes) {
  if (!warp.pending_list.empty()) check_pending(warp, i);
  const Operand& to = i.args[0];
  const std::size_t count = std::min<std::size_t>(i.args.size() - 1, 4);
  const std::uint64_t* from[4] = {};
  std::uint64_t in[5] = {};
  for (std::size_t k = 0; k < count; k++) {
    const Operand& o = i.args[k + 1];
    if (o.kind == Operand::reg && !o.negated)
      from[k] = &warp.registers[static_cast<std::size_t>(o.number) * 32];
    else if (o.kind == Operand::imm)
      in[k] = o.value;
  }
  if (to.kind == Operand::sink) return;
  if (to.kind != Operand::reg)
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not write a register", "give it one");
  const int width = width_of(kernel_.registers[static_cast<std::size_t>(to.number)]);
  std::uint64_t* out = &warp.registers[static_cast<std::size_t>(to.number) * 32];
  if (tracks_registers_) {
    std::uint32_t& touched = warp.touched[static_cast<std::size_t>(to.number)];
    if (i.copies) {
      touched = i.args[1].kind == Operand::reg ? warp.touched[static_cast<std::size_t>(i.args[1].number)] : 0;
    } else {
      touched = warp.steps;
      for (std::size_t k = 0; k < count; k++)
        if (i.args[k + 1].kind == Operand::reg)
          warp.touched[static_cast<std::size_t>(i.args[k + 1].number)] = warp.steps;
    }
  }
  each_lane(lanes, [&](unsigned lane) {
    for (std::size_t k = 0; k < count; k++)
      if (from[k])
        in[k] = from[k][lane];
      else if (i.args[k + 1].kind != Operand::imm)
        in[k] = get(warp, i.args[k + 1], lane);
    out[lane] = masked(i.pure(i, in), width);
  });
}

std::uint64_t Machine::get(Warp& warp, const Operand& o, unsigned lane) {
  switch (o.kind) {
    case Operand::reg: {
      const std::uint64_t value = warp.at(o.number, lane);
      return o.negated ? !value : value;
    }
    case Operand::imm:
      return o.value;
    case Operand::shared:
      return std::uint64_t{warp.block->rank} << kRankShift | o.value;
    case Operand::local:
      return kLocalWindow + o.value;
    case Operand::special:
      return special(warp, lane, static_cast<Special>(o.number));
    default:
      return 0;
  }
}

void Machine::set(Warp& warp, const Operand& o, unsigned lane, std::uint64_t value) {
  if (o.kind == Operand::reg)
    warp.at(o.number, lane) = masked(value, width_of(kernel_.registers[static_cast<std::size_t>(o.number)]));
}

std::uint64_t Machine::address(Warp& warp, const Operand& o, unsigned lane) {
  return get(warp, o.parts[0], lane) + o.value;
}

std::uint64_t Machine::special(const Warp& warp, unsigned lane, Special which) const {
  const Block& block = *warp.block;
  const std::uint32_t thread = warp.number * 32 + lane;
  const auto& b = launch_.block;
  const auto& c = launch_.cluster;
  const auto axis = [&](Special first) { return static_cast<std::size_t>(which) - static_cast<std::size_t>(first); };
  switch (which) {
    case Special::tid_x:
      return thread % b[0];
    case Special::tid_y:
      return thread / b[0] % b[1];
    case Special::tid_z:
      return thread / b[0] / b[1];
    case Special::ntid_x:
    case Special::ntid_y:
    case Special::ntid_z:
      return b[axis(Special::ntid_x)];
    case Special::ctaid_x:
    case Special::ctaid_y:
    case Special::ctaid_z:
      return block.index[axis(Special::ctaid_x)];
    case Special::nctaid_x:
    case Special::nctaid_y:
    case Special::nctaid_z:
      return launch_.grid[axis(Special::nctaid_x)];
    case Special::laneid:
      return lane;
    case Special::warpid:
      return warp.number;
    case Special::nwarpid:
      return block.warps.size();
    case Special::clusterid_x:
    case Special::clusterid_y:
    case Special::clusterid_z:
      return block.cluster->index[axis(Special::clusterid_x)];
    case Special::nclusterid_x:
    case Special::nclusterid_y:
    case Special::nclusterid_z: {
      const std::size_t d = axis(Special::nclusterid_x);
      return launch_.grid[d] / c[d];
    }
    case Special::cluster_ctaid_x:
    case Special::cluster_ctaid_y:
    case Special::cluster_ctaid_z:
      return block.index_in_cluster[axis(Special::cluster_ctaid_x)];
    case Special::cluster_nctaid_x:
    case Special::cluster_nctaid_y:
    case Special::cluster_nctaid_z:
      return c[axis(Special::cluster_nctaid_x)];
    case Special::cluster_ctarank:
      return block.rank;
    case Special::cluster_nctarank:
      return c[0] * c[1] * c[2];
    case Special::lanemask_eq:
      return 1u << lane;
    case Special::lanemask_lt:
      return (1u << lane) - 1;
    case Special::lanemask_le:
      return (std::uint64_t{2} << lane) - 1;
    case Special::lanemask_gt:
      return ~((std::uint64_t{2} << lane) - 1) & 0xffffffff;
    case Special::lanemask_ge:
      return ~((std::uint64_t{1} << lane) - 1) & 0xffffffff;
    case Special::smid:
      return block.number;
    case Special::nsmid:
      return launch_.grid[0] * launch_.grid[1] * launch_.grid[2];
    case Special::clock:
      return counts_.instructions;
    case Special::dynamic_shared:
      return launch_.dynamic_shared;
    case Special::is_cluster:
      return c[0] * c[1] * c[2] > 1;
  }
  return 0;
}

// Asynchronous work keeps registers until it is waited for: nothing but a copy may touch them, which then waits as
// well.
void Machine::check_pending(Warp& warp, const Instr& i) {
  if (i.has("mma_async") || (i.parts[0] == "tcgen05" && i.parts[1] == "wait::ld")) return;
  const auto tag = [&](const Operand& o) {
    return o.kind == Operand::reg ? warp.pending[static_cast<std::size_t>(o.number)] : 0;
  };
  const auto refuse = [&](std::uint32_t of) {
    const bool loads = of == kLoading;
    throw Fault(
        "register", i.line,
        loads ? "uses a register that tcgen05.ld still loads" : "uses a register that wgmma.mma_async still works on",
        loads ? "put tcgen05.wait::ld before it" : "put wgmma.wait_group before it");
  };
  if (i.parts[0] == "mov" && i.args[0].kind == Operand::reg && i.args[1].kind == Operand::reg) {
    if (const std::uint32_t of = tag(i.args[1])) {
      auto& target = warp.pending[static_cast<std::size_t>(i.args[0].number)];
      if (!target) warp.pending_list.push_back(i.args[0].number);
      target = of;
      return;
    }
  }
  const auto walk = [&](const auto& self, const Operand& o) -> void {
    if (const std::uint32_t of = tag(o)) refuse(of);
    for (const Operand& part : o.parts) self(self, part);
  };
  for (const Operand& o : i.args) walk(walk, o);
}

void Machine::mark_touched(Warp& warp, const Operand& o) {
  if (o.kind == Operand::reg) warp.touched[static_cast<std::size_t>(o.number)] = warp.steps;
  if (o.kind == Operand::vec || o.kind == Operand::pair)
    for (const Operand& part : o.parts) mark_touched(warp, part);
}

void Machine::mark_pending(Warp& warp, const Operand& o, std::uint32_t tag) {
  if (o.kind == Operand::reg) {
    auto& pending = warp.pending[static_cast<std::size_t>(o.number)];
    if (!pending) warp.pending_list.push_back(o.number);
    pending = tag;
  }
  for (const Operand& part : o.parts) mark_pending(warp, part, tag);
}

// Asynchronous work is over: all loads, or the groups of products up to one.
void Machine::settle(Warp& warp, std::uint32_t up_to, bool loads) {
  std::erase_if(warp.pending_list, [&](std::int32_t number) {
    auto& pending = warp.pending[static_cast<std::size_t>(number)];
    const bool over = loads ? pending == kLoading : pending != kLoading && pending <= up_to;
    if (over) pending = 0;
    return over;
  });
}

void Machine::leave(Warp& warp, Mask lanes, std::uint32_t line) {
  Block& block = *warp.block;
  each_lane(lanes, [&](unsigned lane) {
    const Groups& reads = warp.streams[lane].bulk_reads;
    if (reads.used || reads.open - 1 > reads.waited)
      throw Fault(
          "exit", line,
          "a thread ends while its bulk copy of line " + std::to_string(reads.line) + " may still read shared memory",
          "wait with cp.async.bulk.wait_group.read 0");
  });
  if (launch_.dependent && (lanes & ~warp.waited))
    throw Fault("exit", line, "a thread of a dependent launch ends without having waited for the launch before",
                "put griddepcontrol.wait where every thread comes by");
  warp.live &= ~lanes;
  warp.gathered = 0;  // those who waited for these look again
  if (!warp.live && !warp.pending_list.empty())
    throw Fault("exit", line, "a warp ends while registers are still worked on",
                "wait for its wgmma.mma_async or tcgen05.ld");
  block.live_threads -= static_cast<std::uint32_t>(__builtin_popcount(lanes));
  for (NamedBarrier& barrier : block.barriers)
    if (!barrier.waiting.empty()) complete(block, barrier);
  complete(*block.cluster);
}

void Machine::check_left(Block& block) {
  const auto check = [&](const Mbarrier& b) {
    if (b.bytes != 0)
      throw Fault("exit", b.line,
                  "the block ends with " + std::to_string(b.bytes) + " bytes still expected on this mbarrier",
                  "expect the bytes that are copied");
    if (b.copied > b.observed)
      throw Fault("exit", b.copy_line, "the block ends while this copy may be under way",
                  "wait for its mbarrier's phase");
    if (b.committed > b.observed)
      throw Fault("exit", b.commit_line, "another block ends while this commit may be about to signal it",
                  "wait there for the mbarrier's phase");
  };
  for (const auto& [_, b] : block.mbarriers) check(b);
  for (const Mbarrier& b : block.invalidated) check(b);
  for (bool allocated : block.allocated)
    if (allocated)
      throw Fault("tensor memory", 0, "the block ends with tensor memory allocated", "release it with tcgen05.dealloc");
  for (std::size_t w = 0; w < block.warps.size(); w++)
    if (block.warps[w]->num_products != block.warps[w / 4 * 4]->num_products)
      throw Fault("divergence", 0, "the warps of a warpgroup ran different numbers of wgmma.mma_async",
                  "let all four run each");
}

void Machine::deadlock() {
  std::set<std::uint32_t> lines;
  std::uint32_t line = 0;
  for (const auto& cluster : clusters_)
    for (const auto& block : cluster->blocks)
      for (const auto& warp : block->warps)
        each_lane(warp->live, [&](unsigned lane) {
          const std::uint32_t at = kernel_.code[warp->pc[lane]].line;
          lines.insert(at);
          if (line == 0 && (warp->polling >> lane & 1)) line = at;
        });
  std::string waiting;
  for (const std::uint32_t at : lines) waiting += (waiting.empty() ? "" : ", ") + std::to_string(at);
  throw Fault("deadlock",
              line            ? line
              : lines.empty() ? 0
                              : *lines.begin(),
              "all threads wait for ever, at lines " + waiting,
              "an arrival, a copy or its bytes are missing, or a parity is wrong");
}

}  // namespace ptx
