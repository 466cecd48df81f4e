// Control flow, exchanges within a warp, barriers, fences and mbarriers.
#include <algorithm>

#include "machine.hpp"

namespace ptx {

namespace {

bool has_prefix(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

}  // namespace

Mask Machine::branch(Warp& warp, const Instr& i, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) { warp.pc[lane] = static_cast<std::uint32_t>(i.target) - 1; });
  return lanes;
}

Mask Machine::exit(Warp& warp, const Instr& i, Mask lanes) {
  leave(warp, lanes, i.line);
  return 0;
}

Mask Machine::trap(Warp&, const Instr& i, Mask) {
  throw Fault("trap", i.line, "the kernel traps", "see what it checks there");
}

Mask Machine::nothing(Warp&, const Instr&, Mask lanes) { return lanes; }

// griddepcontrol: the launch after is none of ours.
Mask Machine::depend(Warp& warp, const Instr& i, Mask lanes) {
  if (!i.has("wait")) return lanes;
  warp.waited |= lanes;
  if (launch_.dependent) know(warp, lanes, kLaunchBefore, 1);
  return lanes;
}

Mask Machine::policy(Warp& warp, const Instr& i, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) { set(warp, i.args[0], lane, 0); });
  return lanes;
}

// mov between a register and the parts of a vector.
Mask Machine::unpack(Warp& warp, const Instr& i, Mask lanes) {
  const Operand& to = i.args[0];
  const Operand& from = i.args[1];
  const int whole = width_of(i.type);
  each_lane(lanes, [&](unsigned lane) {
    std::uint64_t value = 0;
    if (from.kind == Operand::vec) {
      const int part = whole / static_cast<int>(from.parts.size());
      for (std::size_t k = 0; k < from.parts.size(); k++) {
        const std::uint64_t bits = get(warp, from.parts[k], lane);
        value |= (part >= 64 ? bits : bits & ((std::uint64_t{1} << part) - 1)) << (part * static_cast<int>(k));
      }
    } else {
      value = get(warp, from, lane);
    }
    if (to.kind == Operand::vec) {
      const int part = whole / static_cast<int>(to.parts.size());
      for (std::size_t k = 0; k < to.parts.size(); k++)
        set(warp, to.parts[k], lane, value >> (part * static_cast<int>(k)));
    } else {
      set(warp, to, lane, value);
    }
  });
  return lanes;
}

Mask Machine::shuffle(Warp& warp, const Instr& i, Mask lanes) {
  const Operand& to = i.args[0].kind == Operand::pair ? i.args[0].parts[0] : i.args[0];
  std::array<std::uint64_t, 32> values{};
  each_lane(lanes, [&](unsigned lane) { values[lane] = get(warp, i.args[1], lane); });
  each_lane(lanes, [&](unsigned lane) {
    const int b = static_cast<int>(get(warp, i.args[2], lane) & 31);
    const std::uint32_t c = static_cast<std::uint32_t>(get(warp, i.args[3], lane));
    const int segment = c >> 8 & 31, clamp = c & 31, l = static_cast<int>(lane);
    const int most = (l & segment) | (clamp & ~segment), least = l & segment;
    int source;
    bool valid;
    if (i.has("up")) {
      source = l - b;
      valid = source >= most;
    } else if (i.has("down")) {
      source = l + b;
      valid = source <= most;
    } else if (i.has("bfly")) {
      source = l ^ b;
      valid = source <= most;
    } else {
      source = least | (b & ~segment);
      valid = source <= most;
    }
    if (!valid) source = l;
    if (!(lanes >> source & 1))
      throw Fault("divergence", i.line, "a lane reads from lane " + std::to_string(source) + ", which is not here",
                  "let it take part");
    set(warp, to, lane, values[static_cast<std::size_t>(source)]);
    if (i.args[0].kind == Operand::pair) set(warp, i.args[0].parts[1], lane, valid);
  });
  return lanes;
}

Mask Machine::vote(Warp& warp, const Instr& i, Mask lanes) {
  Mask votes = 0;
  each_lane(lanes, [&](unsigned lane) { votes |= get(warp, i.args[1], lane) ? 1u << lane : 0; });
  std::uint64_t result = votes;
  if (i.has("all")) result = votes == lanes;
  if (i.has("any")) result = votes != 0;
  if (i.has("uni")) result = votes == lanes || votes == 0;
  each_lane(lanes, [&](unsigned lane) { set(warp, i.args[0], lane, result); });
  return lanes;
}

Mask Machine::reduce(Warp& warp, const Instr& i, Mask lanes) {
  bool first = true;
  std::uint64_t result = 0;
  const bool is_signed_type = is_signed(i.type);
  each_lane(lanes, [&](unsigned lane) {
    const std::uint64_t x = get(warp, i.args[1], lane) & 0xffffffff;
    if (first) {
      result = x;
    } else if (i.has("add")) {
      result += x;
    } else if (i.has("and")) {
      result &= x;
    } else if (i.has("or")) {
      result |= x;
    } else if (i.has("xor")) {
      result ^= x;
    } else if (i.type == Type::f32) {
      const float a = __builtin_bit_cast(float, static_cast<std::uint32_t>(result)),
                  b = __builtin_bit_cast(float, static_cast<std::uint32_t>(x));
      if (b != b ? i.has("NaN") : i.has("max") ? b > a : b < a) result = x;
    } else {
      const std::int64_t a = is_signed_type ? static_cast<std::int32_t>(result) : static_cast<std::int64_t>(result);
      const std::int64_t b = is_signed_type ? static_cast<std::int32_t>(x) : static_cast<std::int64_t>(x);
      if (i.has("max") ? b > a : b < a) result = x;
    }
    first = false;
  });
  each_lane(lanes, [&](unsigned lane) { set(warp, i.args[0], lane, result); });
  return lanes;
}

Mask Machine::match(Warp& warp, const Instr& i, Mask lanes) {
  if (!i.has("any"))
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "add it to kernels/emulator");
  each_lane(lanes, [&](unsigned lane) {
    Mask same = 0;
    each_lane(lanes, [&](unsigned other) {
      same |= get(warp, i.args[1], other) == get(warp, i.args[1], lane) ? 1u << other : 0;
    });
    set(warp, i.args[0], lane, same);
  });
  return lanes;
}

Mask Machine::elect(Warp& warp, const Instr& i, Mask lanes) {
  const auto leader = static_cast<unsigned>(__builtin_ctz(lanes));
  each_lane(lanes, [&](unsigned lane) {
    set(warp, i.args[0].parts[0], lane, leader);
    set(warp, i.args[0].parts[1], lane, lane == leader);
  });
  return lanes;
}

Mask Machine::active(Warp& warp, const Instr& i, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) { set(warp, i.args[0], lane, lanes); });
  return lanes;
}

Mask Machine::warp_barrier(Warp& warp, const Instr&, Mask lanes) {
  Gathered gathered;
  each_lane(lanes, [&](unsigned lane) { gathered.take(warp.thread(lane), warp.clocks[lane]); });
  const Handed handed = gathered.hand();
  each_lane(lanes, [&](unsigned lane) {
    warp.clocks[lane].all = handed.all;
    warp.clocks[lane].fenced = handed.fenced;
  });
  return lanes;
}

Mask Machine::barrier(Warp& warp, const Instr& i, Mask lanes) {
  const bool arrives = i.has("arrive");
  if (i.has("red"))
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "add it to kernels/emulator");
  each_lane(lanes, [&](unsigned lane) {
    const std::uint64_t id = get(warp, i.args[0], lane);
    if (id >= 16) throw Fault("barrier", i.line, "there is no barrier " + std::to_string(id), "a block has 0 to 15");
    NamedBarrier& b = warp.block->barriers[id];
    const bool counted = i.args.size() > 1;
    const auto expected = counted ? static_cast<std::uint32_t>(get(warp, i.args[1], lane)) : 0u;
    if (b.arrived && (b.counted != counted || b.expected != expected))
      throw Fault(
          "barrier", i.line,
          "barrier " + std::to_string(id) + " is for another number of threads at line " + std::to_string(b.line),
          "give both the same");
    b.counted = counted;
    b.expected = expected;
    b.line = i.line;
    b.arrived++;
    if (counted && b.arrived > expected)
      throw Fault("barrier", i.line, "more threads arrive at barrier " + std::to_string(id) + " than it is for",
                  "count them");
    b.gathered.take(warp.thread(lane), warp.clocks[lane]);
    if (!arrives) {
      b.waiting.emplace_back(&warp, lane);
      warp.blocked |= 1u << lane;
    }
  });
  // Whole warps arrive: the barrier is looked at when all lanes are in.
  for (NamedBarrier& b : warp.block->barriers)
    if (b.arrived) complete(*warp.block, b);
  return arrives ? lanes : 0;
}

void Machine::complete(Block& block, NamedBarrier& b) {
  if (b.arrived < (b.counted ? b.expected : block.live_threads)) return;
  const Handed handed = b.gathered.hand();
  for (const auto& [warp, lane] : b.waiting) {
    // All that it knew was gathered: it knows what the others know.
    warp->clocks[lane].all = handed.all;
    warp->clocks[lane].fenced = handed.fenced;
    warp->blocked &= ~(1u << lane);
    warp->pc[lane]++;
  }
  b = NamedBarrier();
}

Mask Machine::cluster_barrier(Warp& warp, const Instr& i, Mask lanes) {
  Cluster& cluster = *warp.block->cluster;
  if (i.has("arrive")) {
    each_lane(lanes, [&](unsigned lane) {
      if (warp.cluster_arrived >> lane & 1)
        throw Fault("barrier", i.line, "a thread arrives twice at the cluster's barrier", "let it wait in between");
      warp.cluster_arrived |= 1u << lane;
      warp.cluster_phase[lane] = cluster.phase;
      cluster.arrived++;
      if (!i.has("relaxed")) cluster.gathered.take(warp.thread(lane), warp.clocks[lane]);
    });
    complete(cluster);
    return lanes;
  }
  Mask go = 0;
  each_lane(lanes, [&](unsigned lane) {
    if (!(warp.cluster_arrived >> lane & 1))
      throw Fault("barrier", i.line, "a thread waits at the cluster's barrier without arriving", "let it arrive first");
    if (cluster.phase == warp.cluster_phase[lane]) {
      warp.polling |= 1u << lane;
      return;
    }
    warp.cluster_arrived &= ~(1u << lane);
    join_.acquire(warp.clocks[lane], cluster.handed);
    go |= 1u << lane;
  });
  return go;
}

void Machine::complete(Cluster& cluster) {
  if (cluster.arrived == 0 || cluster.arrived < cluster.live_threads()) return;
  cluster.handed = cluster.gathered.hand();
  cluster.arrived = 0;
  cluster.phase++;
}

Mask Machine::fence(Warp& warp, const Instr& i, Mask lanes) {
  const bool proxy = i.has("proxy");
  const bool initializes = i.has("mbarrier_init");
  each_lane(lanes, [&](unsigned lane) {
    ThreadClock& clock = warp.clocks[lane];
    if (proxy && !i.has("async") && !i.has("async::generic")) {
      bool async = false;
      for (const std::string& part : i.parts) async |= has_prefix(part, "async");
      if (!async) return;  // of tensor maps and aliases
    }
    if (proxy) {
      clock.fenced = clock.all;
      clock.fenced_now = clock.now++;
    }
    if (proxy || initializes)
      for (const auto& block : warp.block->cluster->blocks)
        for (auto& [_, b] : block->mbarriers)
          if (b.initializer == warp.thread(lane)) b.fenced = true;
    if (!proxy) {
      clock.all = join_(clock.all, clock.seen);
      Gathered released;
      released.take(warp.thread(lane), clock);
      const Handed handed = released.hand();
      clock.released = handed.all;
      clock.released_fenced = handed.fenced;
    }
  });
  return lanes;
}

Mbarrier& Machine::find_mbarrier(Cluster& cluster, std::uint32_t address, const Actor& actor, bool remote) {
  if (address % 8) throw Fault("misaligned", actor.line, "an mbarrier is not at a multiple of 8 bytes", "align it");
  const Place place = find_shared(cluster, address, 8, actor.line);
  const auto found = place.block->mbarriers.find(place.offset);
  if (found == place.block->mbarriers.end())
    throw Fault("mbarrier", actor.line, "there is no mbarrier at this address",
                "initialize it, and let the others wait until it is");
  Mbarrier& b = found->second;
  if (!actor.knows(b.initializer, b.initialized))
    throw Fault("race", actor.line,
                "uses the mbarrier while its initialization of line " + std::to_string(b.line) + " may be under way",
                "put a barrier between them");
  if (remote && launch_.strict && !b.fenced)
    throw Fault("proxy", actor.line,
                "uses the mbarrier of line " + std::to_string(b.line) + " from another proxy or block",
                "put fence.mbarrier_init or fence.proxy.async after its initialization");
  return b;
}

void Machine::try_complete(Mbarrier& b) {
  if (b.pending || b.bytes) return;
  b.phase++;
  b.pending = b.count;
  b.gathered.all.raise(b.agent, static_cast<Time>(b.phase));
  b.handed.push_back(b.gathered.hand());
  polls_ = 0;
}

// Whether the wait is over. The thread learns what the first phase hands on that it may have waited for: of phases that
// are over by chance, since others were fast, another run could have shown it less.
bool Machine::wait_for(Mbarrier& b, ThreadClock& clock, std::uint64_t value, bool parity, bool acquires,
                       std::uint32_t line) {
  const std::uint64_t known = clock.all->at(b.agent);
  const std::uint64_t over = !parity ? value + 1 : (known & 1) != (value & 1) ? known : known + 1;
  if (parity ? (b.phase & 1) == (value & 1) : b.phase == value) {
    if (over <= b.phase)
      throw Fault("mbarrier", line,
                  "waits for a phase of the mbarrier of line " + std::to_string(b.line) + " that was over a phase ago",
                  "let phases go on only when all who wait have seen them");
    return false;
  }
  if (acquires && over > 0 && over <= b.phase) join_.acquire(clock, b.handed[over - 1]);
  b.observed = std::max(b.observed, over);
  return true;
}

void Machine::arrive(Mbarrier& b, std::uint32_t count, std::uint32_t line) {
  if (count > b.pending)
    throw Fault("mbarrier", line,
                "more arrive at the mbarrier of line " + std::to_string(b.line) + " than it counts (" +
                    std::to_string(b.count) + ")",
                "count the arrivals of a phase");
  b.pending -= count;
  try_complete(b);
}

void Machine::transact(Mbarrier& b, std::int64_t bytes, std::uint32_t line) {
  b.bytes += bytes;
  if (b.bytes > 1048575 || b.bytes < -1048575)
    throw Fault("mbarrier", line, "the mbarrier's transactions exceed 2^20 - 1 bytes", "wait in between");
}

Mask Machine::mbarrier(Warp& warp, const Instr& i, Mask lanes) {
  const std::string& op = i.parts[1];
  Cluster& cluster = *warp.block->cluster;
  const bool has_state = op == "arrive" || op == "arrive_drop" || op == "test_wait" || op == "try_wait";
  const Operand& where = i.args[has_state && i.args[0].kind != Operand::address ? 1 : 0];
  const std::size_t first = has_state && i.args[0].kind != Operand::address ? 2 : 1;
  Mask go = lanes;
  each_lane(lanes, [&](unsigned lane) {
    const auto at =
        static_cast<std::uint32_t>(address(warp, where, lane));  // the generic window's low bits are the address
    const Actor actor = thread_actor(warp, lane, i.line);
    ThreadClock& clock = warp.clocks[lane];
    if (op == "init" || op == "inval") {
      const Place place = find_shared(cluster, at, 8, i.line);
      if (at % 8) throw Fault("misaligned", i.line, "an mbarrier is not at a multiple of 8 bytes", "align it");
      const auto found = place.block->mbarriers.find(place.offset);
      if (op == "inval") {
        if (found == place.block->mbarriers.end())
          throw Fault("mbarrier", i.line, "there is no mbarrier at this address", "initialize it");
        log_.write(place.cells, 8, actor, place.space, place.location);
        place.block->invalidated.push_back(found->second);
        place.block->mbarriers.erase(found);
        for (std::uint32_t k = 0; k < 8; k++) {
          place.block->is_barrier[place.offset + k] = false;
          place.cells[k] = {kUninitialized, 0};
        }
        return;
      }
      log_.write(place.cells, 8, actor, place.space, place.location);
      if (found != place.block->mbarriers.end()) {
        place.block->invalidated.push_back(found->second);
        place.block->mbarriers.erase(found);
      }
      Mbarrier b;
      b.count = b.pending = static_cast<std::uint32_t>(get(warp, i.args[1], lane));
      if (b.count == 0 || b.count > 1048575)
        throw Fault("mbarrier", i.line, "an mbarrier counts " + std::to_string(b.count) + " arrivals",
                    "give 1 to 2^20 - 1");
      b.agent = place.block->new_agent();
      b.initializer = warp.thread(lane);
      b.initialized = clock.now;
      b.line = i.line;
      for (std::uint32_t k = 0; k < 8; k++) place.block->is_barrier[place.offset + k] = true;
      place.block->mbarriers[place.offset] = std::move(b);
      return;
    }
    const bool remote = at >> kRankShift != warp.block->rank;
    Mbarrier& b = find_mbarrier(cluster, at, actor, remote);
    const Place place = find_shared(cluster, at, 8, i.line);
    if (op == "expect_tx" || op == "complete_tx") {
      const auto bytes = static_cast<std::int64_t>(get(warp, i.args[first], lane) & 0xffffffff);
      transact(b, op == "expect_tx" ? bytes : -bytes, i.line);
      try_complete(b);
    } else if (op == "arrive" || op == "arrive_drop") {
      log_.read(place.cells, 8, actor, place.space, place.location);
      if (i.args[0].kind == Operand::reg) set(warp, i.args[0], lane, b.phase);
      std::uint32_t count = 1;
      if (i.has("expect_tx"))
        transact(b, static_cast<std::int64_t>(get(warp, i.args[first], lane) & 0xffffffff), i.line);
      else if (i.args.size() > first)
        count = static_cast<std::uint32_t>(get(warp, i.args[first], lane));
      if (!i.has("relaxed")) b.gathered.take(warp.thread(lane), clock);
      if (op == "arrive_drop") b.count -= count;
      arrive(b, count, i.line);
    } else {  // test_wait, try_wait
      const bool over = wait_for(b, clock, get(warp, i.args[first], lane), i.has("parity"), !i.has("relaxed"), i.line);
      if (!over && op == "try_wait") {
        warp.polling |= 1u << lane;
        go &= ~(1u << lane);
        return;
      }
      if (over) {
        log_.read(place.cells, 8, actor, place.space, place.location);
      } else if (++polls_ > 4'000'000) {
        deadlock();
      }
      set(warp, i.args[0], lane, over);
    }
  });
  return go;
}

}  // namespace ptx
