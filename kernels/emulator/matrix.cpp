// Tensor cores: operands in shared memory, mma.sync, and Hopper's wgmma.
#include "matrix.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "numbers.hpp"

namespace ptx {

float widen(Format format, std::uint64_t x) {
  switch (format) {
    case Format::f16:
      return from_f16(x);
    case Format::bf16:
      return from_bf16(x);
    case Format::e4m3: {
      static const auto table = [] {
        std::array<float, 256> t{};
        for (std::uint32_t i = 0; i < 256; i++) t[i] = E4M3::widen(i);
        return t;
      }();
      return table[x & 255];
    }
    default: {
      static const auto table = [] {
        std::array<float, 256> t{};
        for (std::uint32_t i = 0; i < 256; i++) t[i] = E5M2::widen(i);
        return t;
      }();
      return table[x & 255];
    }
  }
}

// The canonical layouts: groups of 8 rows of K (K-major), or of 8 steps of K (MN-major), each row as long as the
// swizzle's span; `stride` leads to the next group, `leading` to the next span.
std::uint32_t Machine::SharedMatrix::address(std::uint32_t row, std::uint32_t k) const {
  const std::uint32_t size = bytes_of(format), span = swizzle ? swizzle : 16;
  std::uint32_t at = start;
  row += first_row;
  if (!mn_major) {
    const std::uint32_t byte = k * size;
    at += row / 8 * stride + row % 8 * span + (swizzle ? byte : byte / 16 * leading + byte % 16);
  } else {
    const std::uint32_t across = span / size;
    at += row / across * (swizzle ? leading : stride) + k / 8 * (swizzle ? stride : leading) + k % 8 * span +
          row % across * size;
  }
  const std::uint32_t bits = swizzle == 128 ? 7 : swizzle == 64 ? 3 : swizzle == 32 ? 1 : 0;
  return at ^ ((at >> 7 & bits) << 4);
}

// [rows][depth]. Sixteen bytes lie together in every layout.
void Machine::read_matrix(Cluster& cluster, std::uint32_t rank, const SharedMatrix& m, std::vector<float>& out,
                          const std::vector<Actor>& actors) {
  const std::uint32_t size = bytes_of(m.format), together = 16 / size;
  out.resize(std::size_t{m.rows} * m.depth);
  const std::uint32_t outer = m.mn_major ? m.depth : m.rows, inner = m.mn_major ? m.rows : m.depth;
  for (std::uint32_t o = 0; o < outer; o++)
    for (std::uint32_t in = 0; in < inner; in += together) {
      const std::uint32_t count = std::min(together, inner - in);
      const std::uint32_t at = m.mn_major ? m.address(in, o) : m.address(o, in);
      const Place place = find_shared(cluster, at | rank << kRankShift, count * size, m.line);
      // What nothing has written are NaNs here: they stay in their row or column, which the kernel may leave out of its
      // result.
      const bool nothing = place.cells[0].writer == kUninitialized;
      for (const Actor& actor : actors)
        if (!nothing) touch(place, count * size, actor, false);
      for (std::uint32_t k = 0; k < count; k++) {
        std::uint64_t x = 0;
        std::memcpy(&x, place.bytes + k * size, size);
        out[m.mn_major ? std::size_t{in + k} * m.depth + o : std::size_t{o} * m.depth + in + k] = widen(m.format, x);
      }
    }
}

void multiply(const float* a, const float* b, std::uint32_t rows, std::uint32_t columns, std::uint32_t depth,
              double* sums) {
  std::vector<double> turned(std::size_t{columns} * depth);
  for (std::uint32_t n = 0; n < columns; n++)
    for (std::uint32_t k = 0; k < depth; k++)
      turned[std::size_t{k} * columns + n] = static_cast<double>(b[std::size_t{n} * depth + k]);
  for (std::uint32_t r = 0; r < rows; r++)
    for (std::uint32_t k = 0; k < depth; k++) {
      const double x = static_cast<double>(a[std::size_t{r} * depth + k]);
      const double* y = &turned[std::size_t{k} * columns];
      double* to = sums + std::size_t{r} * columns;
      for (std::uint32_t n = 0; n < columns; n++) to[n] += x * y[n];
    }
}

namespace {

Format format_of(const Instr& i, Type type) {
  switch (type) {
    case Type::f16:
      return Format::f16;
    case Type::bf16:
      return Format::bf16;
    case Type::e4m3:
      return Format::e4m3;
    case Type::e5m2:
      return Format::e5m2;
    default:
      throw Fault("unsupported", i.line, "`" + i.name() + "` has operands that do not run here",
                  "f16, bf16, e4m3 and e5m2 do");
  }
}

struct Shape {
  std::uint32_t m = 0, n = 0, k = 0;
};

Shape shape_of(const Instr& i) {
  Shape shape;
  for (const std::string& part : i.parts)
    if (std::sscanf(part.c_str(), "m%un%uk%u", &shape.m, &shape.n, &shape.k) == 3) return shape;
  throw Fault("unsupported", i.line, "`" + i.name() + "` has no shape", "give it one");
}

std::vector<Type> types_of(const Instr& i) {
  std::vector<Type> found;
  for (const std::string& part : i.parts) {
    if (part == "f32") found.push_back(Type::f32);
    if (part == "f16") found.push_back(Type::f16);
    if (part == "bf16") found.push_back(Type::bf16);
    if (part == "tf32") found.push_back(Type::tf32);
    if (part == "e4m3") found.push_back(Type::e4m3);
    if (part == "e5m2") found.push_back(Type::e5m2);
    if (part == "s8" || part == "u8" || part == "s32") found.push_back(Type::other);
  }
  return found;
}

}  // namespace

// One warp: rows lane / 4 and that + 8 of A, column lane / 4 of B, and pairs of columns of C.
Mask Machine::mma(Warp& warp, const Instr& i, Mask lanes) {
  const Shape s = shape_of(i);
  const std::vector<Type> types = types_of(i);
  if (types.size() != 4 || types[0] != Type::f32 || types[3] != Type::f32 || s.m != 16 || s.n != 8)
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "m16n8 with f32 sums does");
  const Format a_format = format_of(i, types[1]), b_format = format_of(i, types[2]);
  const std::uint32_t size = bytes_of(a_format), each = 4 / size;
  std::vector<float> a(16 * s.k), b(8 * s.k);
  std::vector<double> sums(16 * 8);
  const auto& regs = [&](std::size_t k) -> const std::vector<Operand>& { return i.args[k].parts; };
  each_lane(lanes, [&](unsigned lane) {
    for (std::uint32_t r = 0; r < regs(1).size(); r++)
      for (std::uint32_t e = 0; e < each; e++)
        a[(lane / 4 + 8 * (r & 1)) * s.k + each * (lane % 4) + r / 2 * 4 * each + e] =
            widen(a_format, get(warp, regs(1)[r], lane) >> (8 * size * e));
    for (std::uint32_t r = 0; r < regs(2).size(); r++)
      for (std::uint32_t e = 0; e < each; e++)
        b[lane / 4 * s.k + each * (lane % 4) + r * 4 * each + e] =
            widen(b_format, get(warp, regs(2)[r], lane) >> (8 * size * e));
    for (std::uint32_t r = 0; r < 4; r++)
      sums[(lane / 4 + 8 * (r / 2)) * 8 + 2 * (lane % 4) + r % 2] =
          static_cast<double>(f32(get(warp, regs(3)[r], lane)));
  });
  multiply(a.data(), b.data(), 16, 8, s.k, sums.data());
  each_lane(lanes, [&](unsigned lane) {
    for (std::uint32_t r = 0; r < 4; r++)
      set(warp, regs(0)[r], lane,
          bits(static_cast<float>(sums[(lane / 4 + 8 * (r / 2)) * 8 + 2 * (lane % 4) + r % 2])));
  });
  counts_.products++;
  return lanes;
}

// One warp of a warpgroup: its 16 rows of the product, of which it alone reads those of A.
Mask Machine::wgmma(Warp& warp, const Instr& i, Mask lanes) {
  const Shape s = shape_of(i);
  const std::vector<Type> types = types_of(i);
  if (types.size() != 3 || types[0] != Type::f32)
    throw Fault("unsupported", i.line, "`" + i.name() + "` does not run here", "f32 sums do");
  const Format a_format = format_of(i, types[1]), b_format = format_of(i, types[2]);
  const unsigned first = static_cast<unsigned>(__builtin_ctz(lanes)),
                 last = 31 - static_cast<unsigned>(__builtin_clz(lanes));
  const Operand& out = i.args[0];
  const Operand& left = i.args[1];
  const bool in_registers = left.kind == Operand::vec;
  if (out.parts.size() != s.n / 2)
    throw Fault("unsupported", i.line, "`" + i.name() + "` has " + std::to_string(out.parts.size()) + " registers",
                "give N / 2");
  const bool accumulates = get(warp, i.args[3], first) != 0;
  const auto sign = [&](std::size_t k) {
    return static_cast<std::int32_t>(get(warp, i.args[k], first)) < 0 ? -1.0f : 1.0f;
  };
  const float factor = sign(4) * sign(5);
  const bool a_turned = !in_registers && i.args.size() > 7 && get(warp, i.args[6], first);
  const bool b_turned = i.args.size() > 6 && get(warp, i.args.back(), first);

  if (warp.fenced_step == 0)
    throw Fault("register", i.line, "no wgmma.fence stands before the first wgmma.mma_async", "put one there");
  const auto check_touched = [&](const Operand& vec) {
    for (const Operand& o : vec.parts)
      if (o.kind == Operand::reg && warp.touched[static_cast<std::size_t>(o.number)] > warp.fenced_step)
        throw Fault("register", i.line, "wgmma.mma_async works on a register that was used after the last wgmma.fence",
                    "put wgmma.fence before it");
  };
  check_touched(out);
  if (in_registers) check_touched(left);

  std::vector<Actor> actors;
  for (const unsigned lane : {first, last}) {
    actors.push_back(copy_actor(warp, lane, i.line, warp.block->agent_of(warp.products), warp.products.open));
    if (first == last) break;
  }
  const auto shared = [&](const Operand& o, std::uint32_t rows, bool turned, Format format) {
    const std::uint64_t d = get(warp, o, first);
    static constexpr std::uint32_t swizzles[] = {0, 128, 64, 32};
    if (d >> 49 & 7)
      throw Fault("unsupported", i.line, "the descriptor has a base offset", "align the tile to the swizzle's 8 rows");
    return SharedMatrix{static_cast<std::uint32_t>(d & 0x3fff) << 4,
                        static_cast<std::uint32_t>(d >> 16 & 0x3fff) << 4,
                        static_cast<std::uint32_t>(d >> 32 & 0x3fff) << 4,
                        swizzles[d >> 62],
                        turned,
                        rows,
                        s.k,
                        format,
                        i.line};
  };
  std::vector<float> a, b;
  Cluster& cluster = *warp.block->cluster;
  if (in_registers) {
    const std::uint32_t size = bytes_of(a_format), each = 4 / size;
    a.resize(16 * s.k);
    each_lane(lanes, [&](unsigned lane) {
      for (std::uint32_t r = 0; r < left.parts.size(); r++)
        for (std::uint32_t e = 0; e < each; e++)
          a[(lane / 4 + 8 * (r & 1)) * s.k + each * (lane % 4) + r / 2 * 4 * each + e] =
              widen(a_format, get(warp, left.parts[r], lane) >> (8 * size * e));
    });
  } else {
    SharedMatrix matrix = shared(left, 16, a_turned, a_format);
    matrix.first_row = warp.number % 4 * 16;
    read_matrix(cluster, warp.block->rank, matrix, a, actors);
  }
  read_matrix(cluster, warp.block->rank, shared(i.args[2], s.n, b_turned, b_format), b, actors);
  if (factor < 0)
    for (float& x : b) x = -x;
  std::vector<double> sums(std::size_t{16} * s.n);
  const auto at = [&](unsigned lane, std::uint32_t r) {
    return (lane / 4 + 8 * (r / 2 % 2)) * s.n + r / 4 * 8 + 2 * (lane % 4) + r % 2;
  };
  if (accumulates)
    each_lane(lanes, [&](unsigned lane) {
      for (std::uint32_t r = 0; r < out.parts.size(); r++)
        sums[at(lane, r)] = static_cast<double>(f32(get(warp, out.parts[r], lane)));
    });
  multiply(a.data(), b.data(), 16, s.n, s.k, sums.data());
  each_lane(lanes, [&](unsigned lane) {
    for (std::uint32_t r = 0; r < out.parts.size(); r++)
      set(warp, out.parts[r], lane, bits(static_cast<float>(sums[at(lane, r)])));
  });
  warp.products.used = true;
  mark_pending(warp, out, warp.products.open);
  if (in_registers) mark_pending(warp, left, warp.products.open);
  warp.num_products++;
  counts_.products++;
  return lanes;
}

Mask Machine::wgmma_fence(Warp& warp, const Instr&, Mask lanes) {
  warp.fenced_step = warp.steps;
  return lanes;
}

Mask Machine::wgmma_commit(Warp& warp, const Instr&, Mask lanes) {
  warp.products.open++;
  warp.products.used = false;
  return lanes;
}

Mask Machine::wgmma_wait(Warp& warp, const Instr& i, Mask lanes) {
  const auto newest = static_cast<Time>(get(warp, i.args[0], 0));
  const Time over = warp.products.open - 1 > newest ? warp.products.open - 1 - newest : 0;
  settle(warp, over, false);
  know(warp, lanes, warp.block->agent_of(warp.products), over);
  return lanes;
}

// The lanes learn how far an agent has come.
void Machine::know(Warp& warp, Mask lanes, Agent agent, Time time) {
  SharedClock from, to;
  each_lane(lanes, [&](unsigned lane) {
    SharedClock& all = warp.clocks[lane].all;
    if (all != from) {
      from = all;
      auto raised = std::make_shared<Clock>(*all);
      raised->raise(agent, time);
      to = std::move(raised);
    }
    all = to;
  });
}

}  // namespace ptx
