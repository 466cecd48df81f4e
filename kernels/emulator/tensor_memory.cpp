// Blackwell's tensor memory: who may touch it when, its loads and stores, and tcgen05.mma.
#include <algorithm>
#include <cstring>

#include "matrix.hpp"
#include "numbers.hpp"

namespace ptx {

namespace {

constexpr unsigned kColumns = 512;
constexpr std::uint32_t kPoison = 0x7fc0dead;  // a NaN

[[noreturn]] void unsupported(const Instr& i) {
  throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "add it to kernels/emulator");
}

}  // namespace

// Where a strict kernel has no tcgen05.fence, tensor-memory operations are not ordered by what the thread has waited
// for.
Actor Machine::tensor_actor(Warp& warp, unsigned lane, std::uint32_t line, Agent stamp, Time time) const {
  Actor actor = thread_actor(warp, lane, line);
  if (launch_.strict) actor.all = warp.clocks[lane].tensor.get();
  actor.pipe = warp.loads;
  actor.pipe_time = warp.loads_waited;
  actor.pipe2 = warp.stores;
  actor.pipe2_time = warp.stores_waited;
  actor.stamp = stamp;
  actor.time = time;
  return actor;
}

// The asynchronous work of one thread runs in order.
Actor Machine::pipe_actor(Warp& warp, unsigned lane, std::uint32_t line) {
  LaneStreams& streams = warp.streams[lane];
  if (streams.pipe == ~0u) streams.pipe = warp.block->new_agent();
  streams.serial++;
  ThreadClock& clock = warp.clocks[lane];
  streams.issued = clock.all;
  streams.issued_fenced = clock.fenced;
  streams.issued_now = clock.now;
  streams.issued_fenced_now = clock.fenced_now;
  Actor actor = copy_actor(warp, lane, line, streams.pipe, streams.serial);
  actor.pipe = streams.pipe;
  clock.now++;  // what the thread does from here on is not before this work
  return actor;
}

void Machine::tensor_touch(Block& block, unsigned row, unsigned column, unsigned count, const Actor& actor,
                           bool write) {
  if (row >= 128 || column + count > kColumns)
    throw Fault("out of bounds", actor.line, "accesses tensor memory beyond its 128 lanes and 512 columns",
                "compute the address anew");
  for (unsigned c = column; c < column + count; c++)
    if (!block.allocated[c])
      throw Fault("tensor memory", actor.line,
                  "accesses column " + std::to_string(c) + " of tensor memory, which is not allocated",
                  "allocate it with tcgen05.alloc");
  Cell* cells = &block.tensor_cells[std::size_t{row} * kColumns + column];
  const std::uint64_t location = std::uint64_t{row} << 16 | column;
  if (write)
    log_.write(cells, count, actor, "tensor memory", location);
  else
    log_.read(cells, count, actor, "tensor memory", location);
}

Mask Machine::tensor_allocate(Warp& warp, const Instr& i, Mask lanes) {
  Block& block = *warp.block;
  const unsigned first = static_cast<unsigned>(__builtin_ctz(lanes));
  if (i.parts[1] == "relinquish_alloc_permit") {
    block.relinquished = true;
    return lanes;
  }
  const auto columns = static_cast<unsigned>(get(warp, i.args[1], first));
  if (columns < 32 || columns > kColumns || (columns & (columns - 1)))
    throw Fault("tensor memory", i.line, std::to_string(columns) + " columns of tensor memory",
                "give a power of two from 32 to 512");
  if (i.parts[1] == "alloc") {
    if (block.relinquished)
      throw Fault("tensor memory", i.line, "allocates tensor memory after giving up to",
                  "allocate before tcgen05.relinquish_alloc_permit");
    for (unsigned at = 0; at + columns <= kColumns; at += columns)
      if (std::none_of(&block.allocated[at], &block.allocated[at] + columns, [](bool b) { return b; })) {
        std::fill_n(&block.allocated[at], columns, true);
        block.allocator = warp.thread(first);
        block.allocated_at = warp.clocks[first].now;
        block.allocation_line = i.line;
        block.tensor.resize(std::size_t{128} * kColumns);
        block.tensor_cells.resize(block.tensor.size());
        for (unsigned row = 0; row < 128; row++) {
          std::fill_n(&block.tensor_cells[std::size_t{row} * kColumns + at], columns, Cell{});
          std::fill_n(&block.tensor[std::size_t{row} * kColumns + at], columns, kPoison);
        }
        const Place place = find(warp, first, Space::shared, address(warp, i.args[0], first) & 0xffffffff, 4, i.line);
        Actor actor = thread_actor(warp, first, i.line);
        actor.async = true;  // no generic write, which later copies to this place would need a fence for
        touch(place, 4, actor, true);
        std::memcpy(place.bytes, &at, 4);
        return lanes;
      }
    throw Fault("tensor memory", i.line,
                "there are not " + std::to_string(columns) + " columns of tensor memory left of 512",
                "use fewer, or release some first");
  }
  const std::uint64_t at = get(warp, i.args[0], first) & 0xffff;
  for (unsigned c = 0; c < columns; c++)
    if (at + c >= kColumns || !block.allocated[at + c])
      throw Fault("tensor memory", i.line, "releases tensor memory that is not allocated",
                  "release what was allocated");
  const Actor actor = thread_actor(warp, first, i.line);
  for (unsigned row = 0; row < 128; row++) tensor_touch(block, row, static_cast<unsigned>(at), columns, actor, true);
  std::fill_n(&block.allocated[at], columns, false);
  return lanes;
}

// Calls each(lane, register, row, column) for the registers of a load or a store.
template <class F>
void Machine::tensor_registers(Warp& warp, const Instr& i, const Operand& registers, std::uint32_t at, bool, F&& each) {
  const unsigned row = at >> 16, column = at & 0xffff, quarter = warp.number % 4 * 32;
  const bool whole = i.has("32x32b");
  if (whole ? row != quarter : row != quarter && row != quarter + 16)
    throw Fault("out of bounds", i.line, "a warp accesses lane " + std::to_string(row) + " of tensor memory",
                "warp w reaches the 32 lanes from 32 * (w % 4) on");
  unsigned half = 0;
  if (i.has("16x32bx2")) half = static_cast<unsigned>(get(warp, i.args[i.parts[1] == "ld" ? 2 : 1], 0));
  if (i.has("pack::16b") || i.has("unpack::16b")) unsupported(i);
  const std::size_t count = registers.kind == Operand::vec ? registers.parts.size() : 1;
  for (unsigned lane = 0; lane < 32; lane++)
    for (unsigned j = 0; j < count; j++) {
      unsigned r = lane, c = j;
      if (i.has("16x32bx2")) {
        r = lane % 16;
        c = j + (lane >= 16 ? half : 0);
      } else if (i.has("16x64b")) {
        r = lane / 4 + 8 * (lane / 2 % 2);
        c = 2 * j + lane % 2;
      } else if (i.has("16x128b")) {
        r = lane / 4 + 8 * (j % 2);
        c = j / 2 * 4 + lane % 4;
      } else if (i.has("16x256b")) {
        r = lane / 4 + 8 * (j / 2 % 2);
        c = j / 4 * 8 + 2 * (lane % 4) + j % 2;
      }
      each(lane, registers.kind == Operand::vec ? registers.parts[j] : registers, row + r, column + c);
    }
}

Mask Machine::tensor_load(Warp& warp, const Instr& i, Mask lanes) {
  if (i.parts[1] != "ld" || i.has("red")) unsupported(i);
  Block& block = *warp.block;
  if (warp.loads == ~0u) warp.loads = block.new_agent();
  const Actor actor = tensor_actor(warp, 0, i.line, warp.loads, ++warp.load_serial);
  tensor_registers(warp, i, i.args[0], static_cast<std::uint32_t>(address(warp, i.args[1], 0)), true,
                   [&](unsigned lane, const Operand& o, unsigned row, unsigned column) {
                     // A kernel may load what it then does not use: it gets a NaN, if it is not strict.
                     const bool nothing = !launch_.strict && row < 128 && block.allocated[column % kColumns] &&
                                          block.tensor_cells[row * kColumns + column].writer == kUninitialized;
                     if (!nothing) tensor_touch(block, row, column, 1, actor, false);
                     set(warp, o, lane, block.tensor[std::size_t{row} * kColumns + column]);
                   });
  mark_pending(warp, i.args[0], kLoading);
  return lanes;
}

Mask Machine::tensor_store(Warp& warp, const Instr& i, Mask lanes) {
  Block& block = *warp.block;
  if (warp.stores == ~0u) warp.stores = block.new_agent();
  const Actor actor = tensor_actor(warp, 0, i.line, warp.stores, ++warp.store_serial);
  tensor_registers(warp, i, i.args.back(), static_cast<std::uint32_t>(address(warp, i.args[0], 0)), false,
                   [&](unsigned lane, const Operand& o, unsigned row, unsigned column) {
                     tensor_touch(block, row, column, 1, actor, true);
                     block.tensor[std::size_t{row} * kColumns + column] =
                         static_cast<std::uint32_t>(get(warp, o, lane));
                   });
  return lanes;
}

Mask Machine::tensor_wait(Warp& warp, const Instr& i, Mask lanes) {
  const bool loads = i.parts[1] == "wait::ld";
  if (loads) {
    warp.loads_waited = warp.load_serial;
    settle(warp, 0, true);
  } else {
    warp.stores_waited = warp.store_serial;
  }
  // A strict kernel publishes it with tcgen05.fence::before_thread_sync.
  const Agent agent = loads ? warp.loads : warp.stores;
  if (!launch_.strict && agent != ~0u) know(warp, lanes, agent, loads ? warp.loads_waited : warp.stores_waited);
  return lanes;
}

Mask Machine::tensor_fence(Warp& warp, const Instr& i, Mask lanes) {
  if (i.parts[1] == "fence::before_thread_sync") {
    if (warp.loads != ~0u) know(warp, lanes, warp.loads, warp.loads_waited);
    if (warp.stores != ~0u) know(warp, lanes, warp.stores, warp.stores_waited);
  } else {
    each_lane(lanes, [&](unsigned lane) { warp.clocks[lane].tensor = warp.clocks[lane].all; });
  }
  return lanes;
}

Mask Machine::tensor_mma(Warp& warp, const Instr& i, Mask lanes) {
  if (lanes & (lanes - 1)) throw Fault("divergence", i.line, "more than one thread issues tcgen05.mma", "elect one");
  if (i.has("block_scale") || i.has("sp")) unsupported(i);
  const bool narrow = i.has("kind::f8f6f4"), ws = i.has("ws"), pair = i.has("cta_group::2");
  if (!narrow && !i.has("kind::f16")) unsupported(i);
  const unsigned lane = static_cast<unsigned>(__builtin_ctz(lanes));
  Block& block = *warp.block;
  Cluster& cluster = *block.cluster;

  const auto d = static_cast<std::uint32_t>(get(warp, i.args[3], lane));
  const std::uint32_t n = (d >> 17 & 63) * 8, m = (d >> 24 & 31) * 16, a_code = d >> 7 & 7, b_code = d >> 10 & 7;
  const auto refuse = [&](const std::string& what) {
    throw Fault("descriptor", i.line, "the instruction descriptor has " + what, "see the tables of tcgen05.mma");
  };
  if ((d >> 4 & 3) != 1) refuse("sums that are not f32");
  if (d & 0xf || d >> 13 & 3) refuse("a sparse, saturating or negating product, which does not run here");
  if (a_code > 1 || b_code > 1) refuse("a format that does not run here");
  if (d >> 6 & 1 || d >> 23 & 1 || d >> 29 & 1) refuse("reserved bits");
  const bool valid = ws     ? (m == 32 || m == 64 || m == 128) && (n == 64 || n == 128 || n == 256)
                     : pair ? (m == 128 || m == 256) && n >= 32 && n <= 256 && n % 32 == 0
                            : (m == 64 && n >= 8 && n <= 256) || (m == 128 && n >= 16 && n <= 256 && n % 16 == 0);
  if (!valid) refuse("M = " + std::to_string(m) + " and N = " + std::to_string(n));
  const Format formats[2][2] = {{Format::f16, Format::bf16}, {Format::e4m3, Format::e5m2}};
  const Format a_format = formats[narrow][a_code], b_format = formats[narrow][b_code];
  const std::uint32_t depth = narrow ? 32 : 16;

  std::size_t next = 4;
  if (i.args[next].kind == Operand::vec) {
    for (const Operand& o : i.args[next].parts)
      if (get(warp, o, lane)) unsupported(i);
    next++;
  }
  const bool accumulates = get(warp, i.args[next], lane) != 0;
  if (i.args.size() > next + 1 && get(warp, i.args[next + 1], lane)) unsupported(i);

  const Actor actor = pipe_actor(warp, lane, i.line);
  Actor in_tensor = actor;
  if (launch_.strict) in_tensor.all = warp.clocks[lane].tensor.get();
  in_tensor.async = false;  // no proxy stands between it and tensor memory
  in_tensor.pipe2 = warp.stores;
  in_tensor.pipe2_time = warp.stores_waited;
  const auto shared = [&](const Operand& o, std::uint32_t rows, bool turned, Format format) {
    const std::uint64_t x = get(warp, o, lane);
    const auto layout = static_cast<std::uint32_t>(x >> 61);
    if ((x >> 46 & 7) != 1)
      throw Fault("descriptor", i.line, "the matrix descriptor has version " + std::to_string(x >> 46 & 7),
                  "give 1 in bits 46 to 48");
    if (x >> 49 & 7 || x >> 52 & 1 || layout == 1 || layout == 3 || layout == 5 || layout == 7)
      throw Fault("unsupported", i.line,
                  "the matrix descriptor has a base offset, an absolute stride or a layout that do not run here",
                  "swizzles of 0, 32, 64 and 128 bytes do");
    return SharedMatrix{static_cast<std::uint32_t>(x & 0x3fff) << 4,
                        static_cast<std::uint32_t>(x >> 16 & 0x3fff) << 4,
                        static_cast<std::uint32_t>(x >> 32 & 0x3fff) << 4,
                        layout == 0 ? 0u : 256u >> (layout / 2),
                        turned,
                        rows,
                        depth,
                        format,
                        i.line};
  };
  const std::uint32_t to = static_cast<std::uint32_t>(address(warp, i.args[0], lane));
  const unsigned base_row = to >> 16, base_column = to & 0xffff;
  const std::uint32_t rows = pair ? m / 2 : m;  // of each block
  // Which row of the sums is in which lane, and how the columns are folded.
  const bool interleaved = !ws && !pair && m == 64;
  const unsigned folds = ws ? 128 / m : pair && m == 128 ? 2 : 1;
  const auto row_at = [&](std::uint32_t r) { return interleaved ? r / 16 * 32 + r % 16 : r; };
  if (interleaved ? base_row != 0 && base_row != 16 : base_row != 0)
    throw Fault("out of bounds", i.line, "the sums begin at lane " + std::to_string(base_row),
                interleaved ? "M = 64 begins at lane 0 or 16" : "they begin at lane 0");

  std::vector<Block*> blocks{&block};
  if (pair) {
    if (cluster.blocks.size() < (block.rank | 1) + 1)
      throw Fault("launch", i.line, "cta_group::2 in a cluster without a pair",
                  "launch clusters of an even number of blocks");
    blocks = {cluster.blocks[block.rank & ~1u].get(), cluster.blocks[block.rank | 1].get()};
  }
  for (const Block* at : blocks)
    if (at->allocated[base_column] && !actor.knows(at->allocator, at->allocated_at))
      throw Fault("race", i.line,
                  "multiplies into tensor memory while its allocation of line " + std::to_string(at->allocation_line) +
                      " may be under way",
                  "put a barrier of the block, or of the cluster, between them");
  std::vector<float> b, part;
  for (Block* at : blocks) {
    read_matrix(cluster, at->rank, shared(i.args[2], pair ? n / 2 : n, d >> 16 & 1, b_format), part, {actor});
    b.insert(b.end(), part.begin(), part.end());
  }
  for (Block* at : blocks) {
    std::vector<float> a;
    if (i.args[1].kind == Operand::address) {
      if (folds > 1) unsupported(i);
      const auto from = static_cast<std::uint32_t>(address(warp, i.args[1], lane));
      const std::uint32_t size = bytes_of(a_format), words = depth * size / 4;
      a.resize(std::size_t{rows} * depth);
      for (std::uint32_t r = 0; r < rows; r++) {
        const unsigned row = row_at(r) + (from >> 16), column = from & 0xffff;
        tensor_touch(*at, row, column, words, in_tensor, false);
        for (std::uint32_t k = 0; k < depth; k++)
          a[r * depth + k] =
              widen(a_format, at->tensor[std::size_t{row} * kColumns + column + k * size / 4] >> (8 * (k * size % 4)));
      }
    } else {
      read_matrix(cluster, at->rank, shared(i.args[1], rows, d >> 15 & 1, a_format), a, {actor});
    }
    std::vector<double> sums(std::size_t{rows} * n);
    const unsigned width = n / folds;
    for (int pass = 0; pass < 2; pass++) {
      for (std::uint32_t r = 0; r < rows; r++)
        for (unsigned f = 0; f < folds; f++) {
          const unsigned row = row_at(r) + base_row + f * rows;
          if (pass || accumulates) tensor_touch(*at, row, base_column, width, in_tensor, pass == 1);
          if (!pass && !accumulates) continue;
          std::uint32_t* words = &at->tensor[std::size_t{row} * kColumns + base_column];
          double* sum = &sums[std::size_t{r} * n + f * width];
          for (unsigned c = 0; c < width; c++) {
            if (pass)
              words[c] = bits(static_cast<float>(sum[c]));
            else
              sum[c] = static_cast<double>(f32(words[c]));
          }
        }
      if (!pass) multiply(a.data(), b.data(), rows, n, depth, sums.data());
    }
  }
  counts_.products++;
  return lanes;
}

Mask Machine::tensor_copy(Warp& warp, const Instr& i, Mask lanes) {
  if (lanes & (lanes - 1)) throw Fault("divergence", i.line, "more than one thread issues tcgen05.cp", "elect one");
  const unsigned bytes = i.has("128x256b") ? 32 : i.has("128x128b") ? 16 : 0;
  if (!bytes || i.has("b8x16") || i.has("cta_group::2")) unsupported(i);
  const unsigned lane = static_cast<unsigned>(__builtin_ctz(lanes));
  Block& block = *warp.block;
  const Actor actor = pipe_actor(warp, lane, i.line);
  Actor in_tensor = actor;
  if (launch_.strict) in_tensor.all = warp.clocks[lane].tensor.get();
  in_tensor.async = false;
  const std::uint64_t x = get(warp, i.args[1], lane);
  const auto layout = static_cast<std::uint32_t>(x >> 61);
  const SharedMatrix matrix{static_cast<std::uint32_t>(x & 0x3fff) << 4,
                            static_cast<std::uint32_t>(x >> 16 & 0x3fff) << 4,
                            static_cast<std::uint32_t>(x >> 32 & 0x3fff) << 4,
                            layout == 0 ? 0u : 256u >> (layout / 2),
                            false,
                            128,
                            bytes,
                            Format::e4m3,
                            i.line};
  const auto to = static_cast<std::uint32_t>(address(warp, i.args[0], lane));
  for (unsigned row = 0; row < 128; row++) {
    tensor_touch(block, row, to & 0xffff, bytes / 4, in_tensor, true);
    for (unsigned k = 0; k < bytes; k += 16) {
      const Place place = find_shared(*block.cluster, matrix.address(row, k) | block.rank << kRankShift, 16, i.line);
      touch(place, 16, actor, false);
      std::memcpy(&block.tensor[std::size_t{row} * kColumns + (to & 0xffff) + k / 4], place.bytes, 16);
    }
  }
  return lanes;
}

// The mbarriers get an arrival once what this thread has issued so far is over.
Mask Machine::tensor_commit(Warp& warp, const Instr& i, Mask lanes) {
  each_lane(lanes, [&](unsigned lane) {
    Cluster& cluster = *warp.block->cluster;
    const auto at = static_cast<std::uint32_t>(address(warp, i.args[0], lane));
    std::vector<std::uint32_t> targets{at};
    if (i.has("multicast::cluster")) {
      targets.clear();
      const std::uint64_t mask = get(warp, i.args[1], lane);
      for (std::uint32_t r = 0; r < cluster.blocks.size(); r++)
        if (mask >> r & 1) targets.push_back((at & ((1u << kRankShift) - 1)) | r << kRankShift);
    }
    const LaneStreams& streams = warp.streams[lane];
    for (const std::uint32_t target : targets) {
      Mbarrier& b = find_mbarrier(cluster, target, thread_actor(warp, lane, i.line), true);
      if (target >> kRankShift != warp.block->rank) {
        b.committed = b.phase + 1;
        b.commit_line = i.line;
      }
      if (streams.pipe != ~0u) {
        b.gathered.all.join(*streams.issued);
        b.gathered.all.raise(warp.thread(lane), streams.issued_now);
        b.gathered.all.raise(streams.pipe, streams.serial);
        b.gathered.fenced.join(*streams.issued_fenced);
        b.gathered.fenced.raise(warp.thread(lane), streams.issued_fenced_now);
      }
      arrive(b, 1, i.line);
    }
    warp.clocks[lane].now++;
  });
  return lanes;
}

}  // namespace ptx
