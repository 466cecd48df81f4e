// TMA: tiles of tensors and runs of bytes, copied by agents of their own.
#include <algorithm>
#include <cstring>

#include "machine.hpp"

namespace ptx {

Actor Machine::copy_actor(Warp& warp, unsigned lane, std::uint32_t line, Agent stamp, Time time) const {
  const ThreadClock& clock = warp.clocks[lane];
  Actor actor = thread_actor(warp, lane, line);
  actor.async = true;
  actor.fenced = clock.fenced.get();
  actor.fenced_self = warp.thread(lane);
  actor.fenced_time = clock.fenced_now;
  actor.stamp = stamp;
  actor.time = time;
  return actor;
}

const TensorMap& Machine::find_map(Warp& warp, unsigned lane, std::uint64_t address, std::uint32_t line) {
  const Place place = find(warp, lane, Space::generic, address, 64, line);
  std::uint32_t number = ~0u;
  if (std::memcmp(place.bytes, kMapMagic, sizeof kMapMagic) == 0)
    std::memcpy(&number, place.bytes + sizeof kMapMagic, 4);
  if (number >= maps_.size())
    throw Fault("tensor map", line, "there is no tensor map at this address", "pass a TensorMap as the argument");
  return maps_[number];
}

Mask Machine::bulk_copy(Warp& warp, const Instr& i, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) {
    counts_.copies++;
    if (i.has("prefetch")) return;
    if (i.has("tensor"))
      bulk_tensor(warp, lane, i);
    else
      bulk_linear(warp, lane, i);
  });
  return lanes;
}

void Machine::bulk_tensor(Warp& warp, unsigned lane, const Instr& i) {
  // Loads end in an mbarrier: [dst], [map, {coordinates}], [mbarrier] {, mask} {, policy}. Stores: [map,
  // {coordinates}], [src].
  const bool load = i.has("mbarrier::complete_tx::bytes"), gather = i.has("tile::gather4"),
             multicast = i.has("multicast::cluster");
  if (!load && !i.has("bulk_group"))
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "add it to kernels/emulator");
  if (i.has("im2col") || i.has("tile::scatter4"))
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "add it to kernels/emulator");
  const Operand& tensor = i.args[load ? 1 : 0];
  const TensorMap& map = find_map(warp, lane, address(warp, tensor, lane), i.line);
  std::vector<std::int64_t> at;
  for (const Operand& c : tensor.parts.at(1).parts) at.push_back(static_cast<std::int32_t>(get(warp, c, lane)));
  const std::size_t dims = map.sizes.size();
  if (gather ? dims != 2 || at.size() != 5 || map.box[1] != 1 : at.size() != dims)
    throw Fault("tensor map", i.line,
                std::to_string(at.size()) + " coordinates for a tensor of " + std::to_string(dims) + " dimensions",
                "give one a dimension; for gather4 a column and four rows, and a box of one row");
  const auto shared = static_cast<std::uint32_t>(address(warp, i.args[load ? 0 : 1], lane));
  if (shared % 128)
    throw Fault("misaligned", i.line, "a tile in shared memory is not at a multiple of 128 bytes", "align it");

  std::vector<std::uint64_t> box(map.box.begin(), map.box.end());
  if (gather) box[1] = 4;
  std::uint64_t rows = 1;
  for (std::size_t d = 1; d < dims; d++) rows *= box[d];
  const std::uint64_t row_bytes = box[0] * map.element_bytes, total = row_bytes * rows;
  const auto swizzled = [&](std::uint32_t offset) {
    const std::uint32_t byte = shared + offset;
    const std::uint32_t bits = map.swizzle == 128 ? 7 : map.swizzle == 64 ? 3 : map.swizzle == 32 ? 1 : 0;
    return byte ^ ((byte >> 7 & bits) << 4);
  };

  std::vector<std::uint32_t> ranks;
  std::uint32_t barrier_at = 0;
  Actor actor = copy_actor(warp, lane, i.line, 0, 0);
  Cluster& cluster = *warp.block->cluster;
  if (load) {
    barrier_at = static_cast<std::uint32_t>(address(warp, i.args[2], lane));
    if (multicast) {
      const std::uint64_t mask = get(warp, i.args[3], lane);
      for (std::uint32_t r = 0; r < 16; r++)
        if (mask >> r & 1) ranks.push_back(r);
    } else {
      ranks.push_back(shared >> kRankShift);
    }
  } else {
    ranks.push_back(shared >> kRankShift);
    LaneStreams& streams = warp.streams[lane];
    streams.bulk_reads.used = streams.bulk_writes.used = true;
    streams.bulk_reads.line = i.line;
  }
  constexpr std::uint32_t kWithin = (1u << kRankShift) - 1;
  for (const std::uint32_t rank : ranks) {
    Mbarrier* barrier = nullptr;
    Actor reads = actor, writes = actor;
    if (load) {
      const std::uint32_t signal = multicast ? (barrier_at & kWithin) | rank << kRankShift : barrier_at;
      const std::uint32_t signalled = signal >> kRankShift;
      if (signalled != rank && !(i.has("cta_group::2") && signalled / 2 == rank / 2))
        throw Fault("mbarrier", i.line,
                    "the tile is for block " + std::to_string(rank) + " of the cluster, its mbarrier in block " +
                        std::to_string(signalled),
                    "have both in one block, or with cta_group::2 in one pair");
      barrier = &find_mbarrier(cluster, signal, actor, true);
      reads.stamp = writes.stamp = barrier->agent;
      reads.time = writes.time = static_cast<Time>(barrier->phase + 1);
    } else {
      LaneStreams& streams = warp.streams[lane];
      reads.stamp = warp.block->agent_of(streams.bulk_reads);
      reads.time = streams.bulk_reads.open;
      writes.stamp = warp.block->agent_of(streams.bulk_writes);
      writes.time = streams.bulk_writes.open;
    }
    for (std::uint64_t row = 0; row < rows; row++) {
      std::uint64_t rest = row, global = map.address;
      bool inside = true;
      for (std::size_t d = 1; d < dims; d++) {
        const auto c = static_cast<std::int64_t>(rest % box[d]);
        rest /= box[d];
        const std::int64_t where = gather ? at[1 + static_cast<std::size_t>(c)] : at[d] + c;
        inside &= where >= 0 && where < static_cast<std::int64_t>(map.sizes[d]);
        global += static_cast<std::uint64_t>(where) * map.strides[d];
      }
      const std::int64_t first = at[0], end = std::min<std::int64_t>(first + static_cast<std::int64_t>(box[0]),
                                                                     static_cast<std::int64_t>(map.sizes[0]));
      const std::int64_t begin = std::clamp<std::int64_t>(first, 0, std::max<std::int64_t>(end, 0));
      const bool any = inside && begin < end;
      Place source;
      if (any) {
        source = find_global(global + static_cast<std::uint64_t>(begin) * map.element_bytes,
                             static_cast<std::uint64_t>(end - begin) * map.element_bytes, i.line);
        touch(source, static_cast<std::uint64_t>(end - begin) * map.element_bytes, load ? reads : writes,
              !load && !i.has("red"));
      }
      // Sixteen bytes stay together under every swizzle.
      for (std::uint64_t b = 0; b < row_bytes; b += 16) {
        const std::uint32_t where =
            (swizzled(static_cast<std::uint32_t>(row * row_bytes + b)) & kWithin) | rank << kRankShift;
        const Place place = find_shared(cluster, where, std::min<std::uint64_t>(16, row_bytes - b), i.line);
        touch(place, std::min<std::uint64_t>(16, row_bytes - b), load ? writes : reads, load);
        for (std::uint64_t k = 0; k < 16 && b + k < row_bytes; k += map.element_bytes) {
          const std::int64_t column = first + static_cast<std::int64_t>((b + k) / map.element_bytes);
          const bool valid = any && column >= begin && column < end;
          std::uint8_t* in_global =
              valid ? source.bytes + static_cast<std::uint64_t>(column - begin) * map.element_bytes : nullptr;
          if (load && valid)
            std::memcpy(place.bytes + k, in_global, map.element_bytes);
          else if (load)
            std::memset(place.bytes + k, map.fill_nan ? 0xff : 0, map.element_bytes);
          else if (valid)
            std::memcpy(in_global, place.bytes + k, map.element_bytes);
        }
      }
    }
    if (barrier) {
      barrier->gathered.all.join(*actor.all);
      barrier->gathered.all.raise(warp.thread(lane), warp.clocks[lane].now);
      barrier->gathered.all.raise(barrier->agent, static_cast<Time>(barrier->phase + 1));
      barrier->copied = barrier->phase + 1;
      barrier->copy_line = i.line;
      transact(*barrier, -static_cast<std::int64_t>(total), i.line);
      try_complete(*barrier);
    }
  }
  warp.clocks[lane].now++;
}

void Machine::bulk_linear(Warp& warp, unsigned lane, const Instr& i) {
  if (i.parts[1] == "reduce")
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "add it to kernels/emulator");
  const bool signals = i.has("mbarrier::complete_tx::bytes"), multicast = i.has("multicast::cluster");
  const std::uint64_t to_at = address(warp, i.args[0], lane), from_at = address(warp, i.args[1], lane);
  const std::uint64_t size = get(warp, i.args[2], lane) & 0xffffffff;
  if (size % 16 || to_at % 16 || from_at % 16)
    throw Fault("misaligned", i.line, "a bulk copy is not in multiples of 16 bytes", "align addresses and size");
  if (size == 0) return;
  Cluster& cluster = *warp.block->cluster;
  // The spaces of the name, in order: target, source.
  const bool to_shared = i.parts[3].rfind("shared", 0) == 0, from_shared = i.parts[4].rfind("shared", 0) == 0;
  Actor actor = copy_actor(warp, lane, i.line, 0, 0);
  std::vector<std::uint32_t> ranks{static_cast<std::uint32_t>(to_at) >> kRankShift};
  if (multicast) {
    ranks.clear();
    const std::uint64_t mask = get(warp, i.args[4], lane);
    for (std::uint32_t r = 0; r < 16; r++)
      if (mask >> r & 1) ranks.push_back(r);
  }
  constexpr std::uint32_t kWithin = (1u << kRankShift) - 1;
  for (const std::uint32_t rank : ranks) {
    Actor reads = actor, writes = actor;
    Mbarrier* barrier = nullptr;
    std::uint64_t target = to_at;
    if (multicast) target = (to_at & kWithin) | std::uint64_t{rank} << kRankShift;
    if (signals) {
      auto signal = static_cast<std::uint32_t>(address(warp, i.args[3], lane));
      if (multicast) signal = (signal & kWithin) | rank << kRankShift;
      barrier = &find_mbarrier(cluster, signal, actor, true);
      reads.stamp = writes.stamp = barrier->agent;
      reads.time = writes.time = static_cast<Time>(barrier->phase + 1);
    } else {
      LaneStreams& streams = warp.streams[lane];
      reads.stamp = warp.block->agent_of(streams.bulk_reads);
      reads.time = streams.bulk_reads.open;
      writes.stamp = warp.block->agent_of(streams.bulk_writes);
      writes.time = streams.bulk_writes.open;
      streams.bulk_reads.used = streams.bulk_writes.used = true;
      streams.bulk_reads.line = i.line;
    }
    const Place from = from_shared ? find_shared(cluster, static_cast<std::uint32_t>(from_at), size, i.line)
                                   : find_global(from_at, size, i.line);
    const Place to = to_shared ? find_shared(cluster, static_cast<std::uint32_t>(target), size, i.line)
                               : find_global(target, size, i.line);
    touch(from, size, reads, false);
    touch(to, size, writes, true);
    std::memcpy(to.bytes, from.bytes, size);
    if (barrier) {
      barrier->gathered.all.join(*actor.all);
      barrier->gathered.all.raise(warp.thread(lane), warp.clocks[lane].now);
      barrier->gathered.all.raise(barrier->agent, static_cast<Time>(barrier->phase + 1));
      barrier->copied = barrier->phase + 1;
      barrier->copy_line = i.line;
      transact(*barrier, -static_cast<std::int64_t>(size), i.line);
      try_complete(*barrier);
    }
  }
  warp.clocks[lane].now++;
}

Mask Machine::bulk_commit(Warp& warp, const Instr&, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) {
    for (Groups* groups : {&warp.streams[lane].bulk_reads, &warp.streams[lane].bulk_writes}) {
      groups->open++;
      groups->used = false;
    }
  });
  return lanes;
}

Mask Machine::bulk_wait(Warp& warp, const Instr& i, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) {
    LaneStreams& streams = warp.streams[lane];
    const auto newest = static_cast<Time>(get(warp, i.args[0], lane));
    auto known = std::make_shared<Clock>(*warp.clocks[lane].all);
    const auto wait = [&](Groups& groups) {
      const Time over = groups.open - 1 > newest ? groups.open - 1 - newest : 0;
      groups.waited = std::max(groups.waited, over);
      if (groups.agent != ~0u) known->raise(groups.agent, groups.waited);
    };
    wait(streams.bulk_reads);
    if (!i.has("read")) wait(streams.bulk_writes);
    warp.clocks[lane].all = known;
  });
  return lanes;
}

}  // namespace ptx
