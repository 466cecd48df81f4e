// Where addresses lead, and what threads load, store, and copy.
#include <algorithm>
#include <bit>
#include <cstring>

#include "machine.hpp"
#include "numbers.hpp"

namespace ptx {

Space Machine::space_of(const Instr& i) const {
  for (const std::string& part : i.parts) {
    if (part == "global" || part == "const") return Space::global;
    if (part == "local") return Space::local;
    if (part.rfind("shared", 0) == 0) return Space::shared;
    if (part.rfind("param", 0) == 0) return Space::parameter;
  }
  return Space::generic;
}

Place Machine::find_global(std::uint64_t address, std::uint64_t size, std::uint32_t line) {
  for (Buffer& buffer : buffers_)
    if (address >= buffer.address && address + size <= buffer.address + buffer.size) {
      Place place;
      place.offset = 0;
      const std::uint64_t at = address - buffer.address;
      place.bytes = buffer.bytes + at;
      place.cells = buffer.cells.empty() ? nullptr : &buffer.cells[at];
      place.space = "global memory";
      place.writable = buffer.writable;
      place.location = address;
      return place;
    }
  char text[96];
  std::snprintf(text, sizeof text, "accesses %llu bytes of global memory at 0x%llx, where none is",
                static_cast<unsigned long long>(size), static_cast<unsigned long long>(address));
  throw Fault("out of bounds", line, text, "mask it, or pass a larger array");
}

Place Machine::find_shared(Cluster& cluster, std::uint32_t address, std::uint64_t size, std::uint32_t line) {
  const std::uint32_t rank = address >> kRankShift, offset = (address & ((1u << kRankShift) - 1)) - kSharedBase;
  if (rank < cluster.blocks.size()) {
    Block& block = *cluster.blocks[rank];
    if (offset + size <= block.shared.size() && offset < block.shared.size()) {
      if (block.live_threads == 0)
        throw Fault("exit", line, "accesses shared memory of a block that has ended",
                    "put a barrier of the cluster before its end");
      Place place;
      place.bytes = &block.shared[offset];
      place.cells = &block.cells[offset];
      place.space = "shared memory";
      place.block = &block;
      place.offset = offset;
      place.location = address;
      return place;
    }
  }
  char text[128];
  std::snprintf(text, sizeof text, "accesses %llu bytes of shared memory at 0x%x, beyond what the block has",
                static_cast<unsigned long long>(size), address);
  throw Fault("out of bounds", line, text, "compute the address anew, or launch with more shared memory");
}

Place Machine::find(Warp& warp, unsigned lane, Space space, std::uint64_t address, std::uint64_t size,
                    std::uint32_t line) {
  if (address % size)
    throw Fault("misaligned", line, "accesses " + std::to_string(size) + " bytes at no multiple of that",
                "align the address");
  if (space == Space::generic) {
    const std::uint64_t window = address >> 40;
    space = window == kSharedWindow >> 40      ? Space::shared
            : window == kLocalWindow >> 40     ? Space::local
            : window == kParameterWindow >> 40 ? Space::parameter
                                               : Space::global;
  }
  Place place;
  switch (space) {
    case Space::shared:
      return find_shared(*warp.block->cluster, static_cast<std::uint32_t>(address), size, line);
    case Space::local: {
      const std::uint64_t at = address - kLocalWindow;
      if (warp.local.empty() || at + size > warp.local[lane].size())
        throw Fault("out of bounds", line, "accesses local memory beyond its end", "compute the address anew");
      place.bytes = &warp.local[lane][at];
      return place;
    }
    case Space::parameter: {
      const std::uint64_t at = address - kParameterWindow;
      if (at + size > parameters_.size())
        throw Fault("out of bounds", line, "accesses parameters beyond their end", "compute the address anew");
      place.bytes = &parameters_[at];
      place.writable = false;
      return place;
    }
    default:
      return find_global(address, size, line);
  }
}

void Machine::touch(const Place& place, std::uint64_t size, const Actor& actor, bool write, bool same) {
  if (write && !place.writable)
    throw Fault("out of bounds", actor.line, "writes what may only be read", "pass a writable array");
  if (!place.cells) return;
  if (!write) return log_.read(place.cells, size, actor, place.space, place.location);
  if (place.block && !place.block->mbarriers.empty())
    for (std::uint64_t k = 0; k < size; k++)
      if (place.block->is_barrier[place.offset + k])
        throw Fault("mbarrier", actor.line, "writes over an mbarrier", "keep them apart, or invalidate it first");
  log_.write(place.cells, size, actor, place.space, place.location, same);
}

void Machine::put(const Place& place, const void* bytes, std::uint64_t size, const Actor& actor) {
  touch(place, size, actor, true, std::memcmp(place.bytes, bytes, size) == 0);
  std::memcpy(place.bytes, bytes, size);
}

Actor Machine::thread_actor(const Warp& warp, unsigned lane, std::uint32_t line) const {
  Actor actor;
  actor.all = warp.clocks[lane].all.get();
  actor.self = actor.stamp = warp.thread(lane);
  actor.time = warp.clocks[lane].now;
  actor.line = line;
  return actor;
}

Mask Machine::load(Warp& warp, const Instr& i, Mask lanes) {
  const Space space = space_of(i);
  const std::size_t bytes = static_cast<std::size_t>(std::max(width_of(i.type), 8)) / 8;
  const std::size_t count = i.args[0].kind == Operand::vec ? i.args[0].parts.size() : 1;
  const bool acquire = i.has("acquire"), strong = acquire || i.has("relaxed") || i.has("volatile");
  each_lane(lanes, [&](unsigned lane) {
    const std::uint64_t at = address(warp, i.args[1], lane);
    const Place place = find(warp, lane, space, at, bytes * count, i.line);
    if (strong)
      if (const auto found = released_.find(reinterpret_cast<std::uint64_t>(place.bytes)); found != released_.end()) {
        const Handed handed = found->second.hand();
        ThreadClock& clock = warp.clocks[lane];
        if (acquire) join_.acquire(clock, handed);
        clock.seen = join_(clock.seen, handed.all);
      }
    Actor actor = thread_actor(warp, lane, i.line);
    actor.strong = strong;
    touch(place, bytes * count, actor, false);
    for (std::size_t k = 0; k < count; k++) {
      std::uint64_t value = 0;
      std::memcpy(&value, place.bytes + k * bytes, std::min<std::size_t>(bytes, 8));
      if (is_signed(i.type) && bytes < 8)
        value = static_cast<std::uint64_t>(static_cast<std::int64_t>(value << (64 - 8 * bytes)) >> (64 - 8 * bytes));
      set(warp, count > 1 || i.args[0].kind == Operand::vec ? i.args[0].parts[k] : i.args[0], lane, value);
    }
  });
  return lanes;
}

Mask Machine::store(Warp& warp, const Instr& i, Mask lanes) {
  if (i.has("async"))
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "add it to kernels/emulator");
  const Space space = space_of(i);
  const std::size_t bytes = static_cast<std::size_t>(std::max(width_of(i.type), 8)) / 8;
  const std::size_t count = i.args[1].kind == Operand::vec ? i.args[1].parts.size() : 1;
  const bool release = i.has("release"), strong = release || i.has("relaxed") || i.has("volatile");
  each_lane(lanes, [&](unsigned lane) {
    const Place place = find(warp, lane, space, address(warp, i.args[0], lane), bytes * count, i.line);
    Actor actor = thread_actor(warp, lane, i.line);
    actor.strong = strong;
    std::array<std::uint8_t, 64> all{};
    for (std::size_t k = 0; k < count; k++) {
      const std::uint64_t value = get(warp, i.args[1].kind == Operand::vec ? i.args[1].parts[k] : i.args[1], lane);
      std::memcpy(&all[k * bytes], &value, std::min<std::size_t>(bytes, 8));
    }
    put(place, all.data(), bytes * count, actor);
    if (strong) {
      Gathered& released = released_[reinterpret_cast<std::uint64_t>(place.bytes)];
      released = Gathered();
      if (release) {
        released.take(warp.thread(lane), warp.clocks[lane]);
      } else {
        released.all.join(*warp.clocks[lane].released);
        released.fenced.join(*warp.clocks[lane].released_fenced);
      }
      polls_ = 0;
    }
  });
  return lanes;
}

namespace {

std::uint64_t combined(const Instr& i, std::uint64_t old, std::uint64_t x, std::uint64_t y) {
  const int w = width_of(i.type);
  const auto number = [&](std::uint64_t v) {
    return is_signed(i.type) && w == 32 ? static_cast<std::int64_t>(static_cast<std::int32_t>(v))
                                        : static_cast<std::int64_t>(v);
  };
  if (i.has("cas")) return old == x ? y : old;
  if (i.has("exch")) return x;
  if (i.has("and")) return old & x;
  if (i.has("or")) return old | x;
  if (i.has("xor")) return old ^ x;
  if (i.has("inc")) return old >= x ? 0 : old + 1;
  if (i.has("dec")) return old == 0 || old > x ? x : old - 1;
  if (i.has("min") || i.has("max")) {
    const bool less = is_signed(i.type) ? number(x) < number(old) : x < old;
    return less == i.has("min") ? x : old;
  }
  switch (i.type) {
    case Type::f32:
      return bits(f32(old) + f32(x));
    case Type::f64:
      return std::bit_cast<std::uint64_t>(std::bit_cast<double>(old) + std::bit_cast<double>(x));
    case Type::f16x2:
      return to_f16(from_f16(old) + from_f16(x)) | std::uint64_t{to_f16(from_f16(old >> 16) + from_f16(x >> 16))} << 16;
    case Type::bf16x2:
      return to_bf16(from_bf16(old) + from_bf16(x)) | std::uint64_t{to_bf16(from_bf16(old >> 16) + from_bf16(x >> 16))}
                                                          << 16;
    case Type::f16:
      return to_f16(from_f16(old) + from_f16(x));
    case Type::bf16:
      return to_bf16(from_bf16(old) + from_bf16(x));
    default:
      return old + x;
  }
}

}  // namespace

Mask Machine::atomic(Warp& warp, const Instr& i, Mask lanes) {
  if (i.has("async"))
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "add it to kernels/emulator");
  const bool returns = i.parts[0] == "atom";
  const std::size_t first = returns ? 1 : 0;
  const std::size_t bytes = static_cast<std::size_t>(width_of(i.type)) / 8;
  const Operand& value = i.args[first + 1];
  const std::size_t count = value.kind == Operand::vec ? value.parts.size() : 1;
  const bool both = i.has("acq_rel"), acquire = both || i.has("acquire"), release = both || i.has("release");
  each_lane(lanes, [&](unsigned lane) {
    const Place place = find(warp, lane, space_of(i), address(warp, i.args[first], lane), bytes * count, i.line);
    ThreadClock& clock = warp.clocks[lane];
    Gathered& released = released_[reinterpret_cast<std::uint64_t>(place.bytes)];
    const Handed handed = released.hand();
    if (acquire) join_.acquire(clock, handed);
    clock.seen = join_(clock.seen, handed.all);
    Actor actor = thread_actor(warp, lane, i.line);
    actor.strong = true;
    touch(place, bytes * count, actor, false);
    touch(place, bytes * count, actor, true);
    for (std::size_t k = 0; k < count; k++) {
      std::uint64_t old = 0;
      std::memcpy(&old, place.bytes + k * bytes, bytes);
      const std::uint64_t x = get(warp, value.kind == Operand::vec ? value.parts[k] : value, lane);
      const std::uint64_t y = i.has("cas") ? get(warp, i.args[first + 2], lane) : 0;
      const std::uint64_t result = combined(i, old, x, y);
      std::memcpy(place.bytes + k * bytes, &result, bytes);
      if (returns) set(warp, i.args[0].kind == Operand::vec ? i.args[0].parts[k] : i.args[0], lane, old);
    }
    if (release) {
      released.take(warp.thread(lane), clock);
    } else {
      released.all.join(*clock.released);
      released.fenced.join(*clock.released_fenced);
    }
    polls_ = 0;
  });
  return lanes;
}

// A row of eight 16-bit elements lies where lane 8 m + r points, for matrix m.
Mask Machine::load_matrix(Warp& warp, const Instr& i, Mask lanes) {
  if (i.type != Type::b16 || !i.has("m8n8"))
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "add it to kernels/emulator");
  const unsigned count = std::max(i.size, 1);
  std::array<std::array<std::uint16_t, 8>, 32> rows{};
  for (unsigned row = 0; row < 8 * count; row++) {
    const Place place = find(warp, row, Space::shared, address(warp, i.args[1], row), 16, i.line);
    touch(place, 16, thread_actor(warp, row, i.line), false);
    std::memcpy(rows[row].data(), place.bytes, 16);
  }
  const bool transposed = i.has("trans");
  each_lane(lanes, [&](unsigned lane) {
    for (unsigned m = 0; m < count; m++) {
      const unsigned a = lane / 4, b = lane % 4 * 2;
      const std::uint32_t low = transposed ? rows[8 * m + b][a] : rows[8 * m + a][b];
      const std::uint32_t high = transposed ? rows[8 * m + b + 1][a] : rows[8 * m + a][b + 1];
      set(warp, i.args[0].kind == Operand::vec ? i.args[0].parts[m] : i.args[0], lane, low | high << 16);
    }
  });
  return lanes;
}

Mask Machine::store_matrix(Warp& warp, const Instr& i, Mask lanes) {
  if (i.type != Type::b16 || !i.has("m8n8"))
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "add it to kernels/emulator");
  const unsigned count = std::max(i.size, 1);
  std::array<std::array<std::uint16_t, 8>, 32> rows{};
  const bool transposed = i.has("trans");
  each_lane(lanes, [&](unsigned lane) {
    for (unsigned m = 0; m < count; m++) {
      const std::uint64_t value = get(warp, i.args[1].kind == Operand::vec ? i.args[1].parts[m] : i.args[1], lane);
      const unsigned a = lane / 4, b = lane % 4 * 2;
      (transposed ? rows[8 * m + b][a] : rows[8 * m + a][b]) = static_cast<std::uint16_t>(value);
      (transposed ? rows[8 * m + b + 1][a] : rows[8 * m + a][b + 1]) = static_cast<std::uint16_t>(value >> 16);
    }
  });
  for (unsigned row = 0; row < 8 * count; row++) {
    const Place place = find(warp, row, Space::shared, address(warp, i.args[0], row), 16, i.line);
    put(place, rows[row].data(), 16, thread_actor(warp, row, i.line));
  }
  return lanes;
}

Mask Machine::copy_async(Warp& warp, const Instr& i, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) {
    Groups& copies = warp.streams[lane].copies;
    Actor actor = thread_actor(warp, lane, i.line);
    actor.stamp = warp.block->agent_of(copies);
    actor.time = copies.open;
    actor.copied = true;
    copies.used = true;
    const std::uint64_t size = get(warp, i.args[2], lane);
    std::uint64_t read = size;
    if (i.args.size() > 3 &&
        width_of(i.args[3].kind == Operand::reg ? kernel_.registers[static_cast<std::size_t>(i.args[3].number)]
                                                : Type::b32) == 32)
      read = get(warp, i.args[3], lane) & 0xffffffff;
    if (read > size)
      throw Fault("out of bounds", i.line,
                  "cp.async reads " + std::to_string(read) + " of " + std::to_string(size) + " bytes", "give no more");
    const Place to = find(warp, lane, Space::shared, address(warp, i.args[0], lane), size, i.line);
    std::array<std::uint8_t, 16> bytes{};
    if (read) {
      const Place from = find_global(address(warp, i.args[1], lane), read, i.line);
      if (from.location % size)
        throw Fault("misaligned", i.line, "cp.async reads at no multiple of its size", "align the address");
      touch(from, read, actor, false);
      std::memcpy(bytes.data(), from.bytes, read);
    }
    touch(to, size, actor, true);
    std::memcpy(to.bytes, bytes.data(), size);
    counts_.copies++;
  });
  return lanes;
}

Mask Machine::copy_commit(Warp& warp, const Instr&, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) { warp.streams[lane].copies.open++; });
  return lanes;
}

Mask Machine::copy_wait(Warp& warp, const Instr& i, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) {
    Groups& copies = warp.streams[lane].copies;
    if (i.has("wait_all")) copies.open++;
    const Time newest = i.has("wait_all") ? 0 : static_cast<Time>(get(warp, i.args[0], lane));
    const Time over = copies.open - 1 > newest ? copies.open - 1 - newest : 0;
    if (over <= copies.waited || copies.agent == ~0u) return;
    copies.waited = over;
    auto known = std::make_shared<Clock>(*warp.clocks[lane].all);
    known->raise(copies.agent, over);
    warp.clocks[lane].all = known;
  });
  return lanes;
}

// The mbarrier gets an arrival once the copies so far are over.
Mask Machine::copy_arrive(Warp& warp, const Instr& i, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) {
    Groups& copies = warp.streams[lane].copies;
    const auto at = static_cast<std::uint32_t>(address(warp, i.args[0], lane));
    Mbarrier& b = find_mbarrier(*warp.block->cluster, at, thread_actor(warp, lane, i.line), false);
    if (!i.has("noinc")) b.pending++;
    b.gathered.all.raise(warp.block->agent_of(copies), copies.open);
    b.gathered.all.join(*warp.clocks[lane].all);
    copies.open++;
    arrive(b, 1, i.line);
  });
  return lanes;
}

Mask Machine::map_address(Warp& warp, const Instr& i, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) {
    const std::uint64_t at = get(warp, i.args[1], lane);
    if (i.parts[0] == "getctarank") return set(warp, i.args[0], lane, at >> kRankShift & 0xff);
    const std::uint64_t rank = get(warp, i.args[2], lane);
    if (rank >= warp.block->cluster->blocks.size())
      throw Fault("out of bounds", i.line, "the cluster has no block " + std::to_string(rank),
                  "give a rank of the cluster");
    set(warp, i.args[0], lane, (at & ~(std::uint64_t{0xff} << kRankShift)) | rank << kRankShift);
  });
  return lanes;
}

// isspacep
Mask Machine::is_space(Warp& warp, const Instr& i, Mask lanes) {
  const Space space = space_of(i);
  each_lane(lanes, [&](unsigned lane) {
    const std::uint64_t window = get(warp, i.args[1], lane) >> 40;
    const bool shared = window == kSharedWindow >> 40, local = window == kLocalWindow >> 40;
    set(warp, i.args[0], lane, space == Space::shared ? shared : space == Space::local ? local : !shared && !local);
  });
  return lanes;
}

}  // namespace ptx
