#include "program.hpp"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "check.hpp"

namespace tsk {
namespace {

using tests::Array;
using tests::on_each_isa;
using tests::Random;

constexpr std::int64_t width = 24, row_bytes = 128;  // rows of 96 bytes, in storage of whole lines

// A value in an arena: so many lines of a row from line `line` on, and which elements of them.
Operand value(Space space, std::int64_t line, std::int64_t lines = 1, std::int64_t first = 0,
              std::int64_t elements = width) {
  Operand operand;
  operand.space = space;
  operand.address = static_cast<std::uint64_t>(line * row_bytes);
  operand.row_bytes = lines * row_bytes;
  operand.offset = first * 4;
  operand.sizes = {{1, space == Space::tokens ? 'T' : 'S'}, {elements, 0}};
  operand.strides = {{lines * row_bytes / 4, 0}, {1, 0}};
  return operand;
}
Operand tokens(std::int64_t line) { return value(Space::tokens, line); }
Operand sequences(std::int64_t line) { return value(Space::sequences, line); }

// Contiguous, as the kernels want what they move rows into: `elements` of 32 a line.
Operand lines(Space space, std::int64_t line, std::int64_t count) { return value(space, line, count, 0, count * 32); }

Operand fixed(const Array& array, char symbol = 0) {
  Operand operand;
  operand.address = reinterpret_cast<std::uint64_t>(array.tensor().data);
  operand.dtype = array.tensor().dtype;
  for (int d = 0; d < array.tensor().dims; ++d) {
    operand.sizes.push_back({array.tensor().sizes[d], 0});
    operand.strides.push_back({array.tensor().strides[d], 0});
  }
  if (symbol) operand.sizes[0] = {1, symbol};
  return operand;
}

std::shared_ptr<Arena> arena() { return std::make_shared<Arena>(); }

// Barriers of a chain of `scale`, `add` and `take_rows` calls: {kernel, operands..., out}.
struct Link {
  const char* kernel;
  std::vector<Operand> operands;
  Operand out;
};
int barriers(const std::vector<Link>& chain) {
  Program program(arena(), 16 * row_bytes, 16 * row_bytes);
  for (const Link& link : chain) {
    const bool scales = std::strcmp(link.kernel, "scale") == 0;
    program.add(link.kernel, link.operands, link.out, scales ? std::vector<double>{2} : std::vector<double>{}, {});
  }
  CHECK(program.num_calls() == static_cast<int>(chain.size()));
  return program.num_barriers();
}

}  // namespace

TEST("kernels by the same rows follow each other without a barrier") {
  if (!isa()) return;
  CHECK(barriers({{"silu", {tokens(0)}, tokens(1)}}) == 0);
  CHECK(barriers({{"silu", {tokens(0)}, tokens(1)},
                  {"add", {tokens(0), tokens(1)}, tokens(2)},
                  {"scale", {tokens(2)}, tokens(1)}}) == 0);
}

TEST("rows of the other region, and kernels that read any row, wait") {
  if (!isa()) return;
  const Array rows = tests::integers({0, 0, 0, 0}, {4});
  CHECK(barriers({{"silu", {tokens(0)}, tokens(1)}, {"silu", {sequences(0)}, sequences(1)}}) == 1);
  CHECK(barriers({{"silu", {tokens(0)}, tokens(1)},
                  {"take_rows", {tokens(1), fixed(rows, 'S')}, sequences(0)},
                  {"silu", {sequences(0)}, sequences(1)}}) == 2);
  CHECK(barriers({{"take_rows", {tokens(0), fixed(rows, 'S')}, sequences(0)},
                  {"take_rows", {tokens(0), fixed(rows, 'S')}, sequences(1)}}) == 1);
}

TEST("memory that has changed hands waits, but not where nothing was written") {
  if (!isa()) return;
  const auto wide = [](std::int64_t line) { return value(Space::tokens, line, 2); };
  // Written as one line a row, then as two: row r of the one lies in another row of the other.
  CHECK(barriers({{"silu", {tokens(0)}, tokens(2)}, {"silu", {tokens(0)}, wide(2)}}) == 1);
  CHECK(barriers({{"silu", {tokens(0)}, tokens(3)}, {"silu", {tokens(0)}, wide(2)}}) == 1);
  // Read as one line, then written as two.
  CHECK(barriers({{"silu", {tokens(2)}, tokens(0)}, {"silu", {tokens(0)}, wide(2)}}) == 1);
  // Written, then read as other rows.
  CHECK(barriers({{"silu", {tokens(0)}, tokens(2)}, {"silu", {wide(2)}, tokens(5)}}) == 1);
  // Read as both: nobody minds.
  CHECK(barriers({{"silu", {tokens(2)}, tokens(0)}, {"silu", {wide(2)}, tokens(5)}}) == 0);
  // Beside each other.
  CHECK(barriers({{"silu", {tokens(0)}, tokens(1)}, {"silu", {tokens(0)}, wide(2)}}) == 0);
  // Since the last barrier only.
  CHECK(barriers({{"silu", {tokens(0)}, tokens(2)},
                  {"silu", {sequences(0)}, sequences(1)},
                  {"silu", {tokens(0)}, wide(2)},
                  {"silu", {wide(2)}, wide(4)}}) == 2);
  // A part of a joint value is of the same rows.
  CHECK(barriers({{"silu", {wide(0)}, wide(2)}, {"silu", {value(Space::tokens, 2, 2, 8, 16)}, wide(4)}}) == 0);
}

// x, doubled, normed and joined over both regions and over memory that changes hands; steps of many sizes by teams of
// every size must give the same.
TEST("a program over two regions gives the same bits with any number of workers, and for steps of any size") {
  on_each_isa([] {
    constexpr std::int64_t most = 37;
    Random random(3);
    const Array x = Array(DType::f32, {most, 64}).fill(random);
    const Array gain = Array(DType::f32, {64}).fill(random);
    const Array weight = Array(DType::f32, {64, 64}).fill(random, 0.1f);
    std::vector<std::int32_t> last(most);
    for (std::int32_t& row : last) row = random.below(3);
    const Array rows = tests::integers(last, {most});
    const auto given = fixed(x, 'T');
    Program program(arena(), 8 * row_bytes, 8 * row_bytes);
    const auto T = [](std::int64_t line) { return lines(Space::tokens, line, 2); };
    const auto S = [](std::int64_t line) { return lines(Space::sequences, line, 2); };
    program.add("copy", {given}, T(0), {}, {});
    program.add("scale", {T(0)}, T(2), {2}, {});
    program.add("rms_norm", {T(2), fixed(gain)}, T(4), {1e-5, 0}, {});
    program.add("linear_rows", {T(4), fixed(weight)}, T(6), {}, {});
    program.add("add", {T(0), T(6)}, T(2), {}, {});
    program.add("scale", {T(2)}, T(0), {1}, {});
    program.add("scale", {value(Space::tokens, 0, 2, 16, 32)}, lines(Space::tokens, 4, 1), {3}, {});
    program.add("scale", {lines(Space::tokens, 4, 1)}, lines(Space::tokens, 6, 1), {1}, {});
    program.add("add", {T(0), T(2)}, T(4), {}, {});  // where narrower rows were
    program.add("take_rows", {T(4), fixed(rows, 'S')}, S(0), {}, {});
    program.add("silu", {S(0)}, S(2), {}, {});
    program.add("add", {S(0), S(2)}, S(4), {}, {});
    const Operand narrow = lines(Space::tokens, 6, 1);
    CHECK(program.num_barriers() == 6);
    std::vector<std::unique_ptr<Team>> teams;
    for (int workers = 1; workers <= tests::most_workers; ++workers)
      teams.push_back(std::make_unique<Team>(workers, std::vector<int>{}));
    for (const StepSizes& sizes : std::vector<StepSizes>{{3, 1, 1}, {37, 5, 1}, {5, 37, 2}, {3, 1, 1}, {16, 16, 1}}) {
      std::vector<float> expected;
      for (int again = 0; again < 2; ++again)
        for (const auto& team : teams) {
          program.run(*team, sizes);
          const auto* out = reinterpret_cast<const float*>(program.address(S(4)));
          std::vector<float> found(out, out + sizes.S * 64);
          const auto* parts = reinterpret_cast<const float*>(program.address(narrow));
          found.insert(found.end(), parts, parts + sizes.T * 32);
          if (expected.empty()) expected = found;
          CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
        }
      // The same in double, row by row.
      for (std::int64_t s = 0; s < sizes.S; ++s) {
        const std::int64_t t = rows.raw<std::int32_t>(s);
        double squares = 0;
        for (std::int64_t e = 0; e < 64; ++e) squares += 4 * x.at(t * 64 + e) * x.at(t * 64 + e);
        const double inverse = 1 / std::sqrt(squares / 64 + 1e-5);
        for (std::int64_t o = 0; o < 64; ++o) {
          double product = 0;
          for (std::int64_t e = 0; e < 64; ++e)
            product += 2 * x.at(t * 64 + e) * inverse * gain.at(e) * weight.at(o * 64 + e);
          const double twice = 2 * (x.at(t * 64 + o) + product), wanted = twice + twice / (1 + std::exp(-twice));
          CHECK(std::fabs(expected[s * 64 + o] - wanted) < 1e-5 * (1 + std::fabs(wanted)));
        }
      }
    }
  });
}

TEST("programs that share an arena take turns") {
  on_each_isa([] {
    const auto shared = arena();
    Random random(5);
    const Array x = Array(DType::f32, {400, 32}).fill(random);
    Program small(shared, 2 * row_bytes, 0), large(shared, 64 * row_bytes, 0);
    const auto given = fixed(x, 'T');
    small.add("scale", {given}, lines(Space::tokens, 1, 1), {2}, {});
    large.add("scale", {given}, lines(Space::tokens, 63, 1), {3}, {});
    Team team(2, {});
    const auto check = [&](Program& program, std::int64_t T, std::int64_t line, float factor) {
      program.run(team, {T, 1, 1});
      const auto* out = reinterpret_cast<const float*>(program.address(lines(Space::tokens, line, 1)));
      for (std::int64_t i = 0; i < T * 32; ++i) CHECK(out[i] == factor * x.raw<float>(i));
    };
    for (const std::int64_t T : {1, 400, 7, 400}) {  // the arena moves when it grows
      check(small, T, 1, 2);
      check(large, T, 63, 3);
      check(small, T, 1, 2);
    }
  });
}

TEST("a call of an unknown kernel, or of more than a call holds, is refused") {
  Program program(arena(), row_bytes, row_bytes);
  CHECK_THROWS(std::invalid_argument, program.add("no such kernel", {}, tokens(0), {}, {}));
  if (!isa()) return;
  CHECK_THROWS(std::invalid_argument,
               program.add("silu", std::vector<Operand>(max_operands + 1, tokens(0)), tokens(0), {}, {}));
  CHECK_THROWS(std::invalid_argument,
               program.add("scale", {tokens(0)}, tokens(0), std::vector<double>(max_numbers + 1), {}));
  CHECK(program.num_calls() == 0);
}

}  // namespace tsk
