#include "collectives.hpp"

#include <algorithm>
#include <vector>

#include "shared_memory.hpp"

namespace tsk {
namespace {

constexpr std::int64_t line_bytes = 64;
// From here on each of several ranks reduces a part and the others take it: another meeting, for fewer bytes to read.
constexpr std::int64_t bytes_to_share = 64 * 1024;

std::int64_t num_elements(const Tensor& x) { return x.dims ? x.sizes[0] * x.row_elements() : 1; }

int dim_of(double number, const Tensor& x) {
  const int dim = static_cast<int>(number);
  return dim < 0 ? dim + x.dims : dim;
}

// Block `index` of `count` along a dimension.
Tensor block(Tensor x, int dim, int index, int count) {
  x.sizes[dim] /= count;
  x.data += index * x.sizes[dim] * x.strides[dim] * element_bytes(x.dtype);
  return x;
}

// Calls f(address, first, count) for what lies in a run of the elements [begin, end), in order.
template <class Function>
void for_runs(const Tensor& x, std::int64_t begin, std::int64_t end, const Function& f) {
  int outer = x.dims;
  std::int64_t run = 1;
  while (outer > 0 && (x.sizes[outer - 1] == 1 || x.strides[outer - 1] == run)) run *= x.sizes[--outer];
  for (std::int64_t at = begin; at < end;) {
    std::int64_t which = at / run, offset = at % run;
    const std::int64_t count = std::min(run - offset, end - at);
    for (int d = outer - 1; d >= 0; --d) {
      offset += which % x.sizes[d] * x.strides[d];
      which /= x.sizes[d];
    }
    f(x.data + offset * element_bytes(x.dtype), at, count);
    at += count;
  }
}

void copy(const Tensor& from, const Tensor& to, std::int64_t begin, std::int64_t end) {
  const std::int64_t bytes = element_bytes(from.dtype);
  for_runs(from, begin, end, [&](const std::byte* source, std::int64_t first, std::int64_t count) {
    for_runs(to, first, first + count, [&](std::byte* target, std::int64_t at, std::int64_t part) {
      std::memmove(target, source + (at - first) * bytes, part * bytes);  // they may be the same
    });
  });
}

void copy_share(const Tensor& from, const Tensor& to, const Worker& worker) {
  const std::int64_t total = num_elements(to);
  copy(from, to, worker.first(total), worker.last(total));
}

// Elements [begin, end) of what travels; first to last of them are this worker's. They lie at the front of the slots.
struct Piece {
  std::int64_t begin, end, first, last;
  int slot;
};

Piece piece_at(std::int64_t begin, std::int64_t end, std::int64_t bytes, int slot, const Worker& worker) {
  const std::int64_t line = line_bytes / bytes, lines = (end - begin + line - 1) / line;
  const auto bound = [&](std::int64_t lines_before) { return std::min(begin + lines_before * line, end); };
  return {begin, end, bound(worker.first(lines)), bound(worker.last(lines)), slot};
}

// All workers have done their share, then all ranks theirs.
void meet(RankGroup& group, const Worker& worker) {
  worker.barrier();
  if (worker.index == 0) group.meet();
  worker.barrier();
}

// Sends `sent[0]` to all, or `sent[j]` to member j, in pieces that fit in a slot; `take(piece, stride)` has what
// arrived: what member i sent is in its slot, and where each was sent another, that for member j is `stride * j` bytes
// from there. Two slots take turns, so that one meeting a piece is enough: who fills a slot again has met all who read
// it.
template <class Take>
void exchange(const Call& call, const Worker& worker, const std::vector<Tensor>& sent, const Take& take) {
  RankGroup& group = *call.group;
  const std::int64_t bytes = element_bytes(call.out.dtype), total = num_elements(sent[0]);
  const std::int64_t stride = Segment::slot_bytes / static_cast<std::int64_t>(sent.size()) / line_bytes * line_bytes;
  int slot = group.turn();
  for (std::int64_t begin = 0; begin < total; begin += stride / bytes, slot ^= 1) {
    const Piece piece = piece_at(begin, std::min(begin + stride / bytes, total), bytes, slot, worker);
    std::byte* to = group.slots(slot)[group.rank()];
    for (const Tensor& part : sent) {
      for_runs(part, piece.first, piece.last, [&](const std::byte* from, std::int64_t at, std::int64_t count) {
        std::memcpy(to + (at - begin) * bytes, from, count * bytes);
      });
      to += stride;
    }
    meet(group, worker);
    if (!group.failed()) take(piece, stride);
    // Whatever was there might be taken for rows or positions; `Program::run` says that the step has failed.
    if (group.failed() && worker.index == 0)
      for_runs(call.out, 0, num_elements(call.out),
               [&](std::byte* at, std::int64_t, std::int64_t count) { std::memset(at, 0, count * bytes); });
  }
  if (worker.index == 0) group.set_turn(slot);
}

// What arrived from each member is a block of the result along `dim`.
void join(const Call& call, int dim, const Piece& piece, std::int64_t offset) {
  const RankGroup& group = *call.group;
  const std::int64_t bytes = element_bytes(call.out.dtype);
  for (int member = 0; member < group.size(); ++member) {
    const std::byte* from = group.slots(piece.slot)[member] + offset;
    for_runs(block(call.out, dim, member, group.size()), piece.first, piece.last,
             [&](std::byte* to, std::int64_t at, std::int64_t count) {
               std::memcpy(to, from + (at - piece.begin) * bytes, count * bytes);
             });
  }
}

std::vector<const std::byte*> slots_at(const RankGroup& group, int slot, std::int64_t offset) {
  std::vector<const std::byte*> found;
  for (int member = 0; member < group.size(); ++member) found.push_back(group.slots(slot)[member] + offset);
  return found;
}

// What arrived from each member is a part of the sum.
void reduce_piece(const Call& call, const Piece& piece, std::int64_t offset, Reduction reduction, Reduce reduce) {
  const std::int64_t bytes = element_bytes(call.out.dtype);
  for_runs(call.out, piece.first, piece.last, [&](std::byte* to, std::int64_t at, std::int64_t count) {
    const auto parts = slots_at(*call.group, piece.slot, offset + (at - piece.begin) * bytes);
    reduce(call.out.dtype, reduction, parts.data(), call.group->size(), to, count);
  });
}

std::vector<Tensor> blocks(const Tensor& x, int dim, int count) {
  std::vector<Tensor> found;
  for (int j = 0; j < count; ++j) found.push_back(block(x, dim, j, count));
  return found;
}

}  // namespace

// (x; reduction)
void all_reduce(const Call& call, const Worker& worker, Reduce reduce) {
  RankGroup& group = *call.group;
  const Tensor& x = call.operands[0];
  const auto reduction = static_cast<Reduction>(call.numbers[0]);
  const std::int64_t bytes = element_bytes(x.dtype);
  if (group.size() == 1) return copy_share(x, call.out, worker);
  exchange(call, worker, {x}, [&](const Piece& piece, std::int64_t) {
    if (group.size() == 2 || (piece.end - piece.begin) * bytes < bytes_to_share)
      return reduce_piece(call, piece, 0, reduction, reduce);
    // Rank r reduces a share of the piece where it lies in its own slot, of which nobody else reads that share before.
    const Worker rank{group.rank(), group.size(), nullptr};
    const Piece ours = piece_at(piece.begin, piece.end, bytes, piece.slot, rank);
    const Piece mine = piece_at(ours.first, ours.last, bytes, piece.slot, worker);
    const auto parts = slots_at(group, piece.slot, (mine.first - piece.begin) * bytes);
    std::byte* to = group.slots(piece.slot)[group.rank()] + (mine.first - piece.begin) * bytes;
    reduce(x.dtype, reduction, parts.data(), group.size(), to, mine.last - mine.first);
    meet(group, worker);
    if (group.failed()) return;
    for (int member = 0; member < group.size(); ++member) {
      const Piece theirs = piece_at(piece.begin, piece.end, bytes, piece.slot, {member, group.size(), nullptr});
      const std::byte* from = group.slots(piece.slot)[member];
      for_runs(call.out, std::max(piece.first, theirs.first), std::min(piece.last, theirs.last),
               [&](std::byte* target, std::int64_t at, std::int64_t count) {
                 std::memcpy(target, from + (at - piece.begin) * bytes, count * bytes);
               });
    }
  });
}

// (x; dim)
void reduce_scatter(const Call& call, const Worker& worker, Reduce reduce) {
  const RankGroup& group = *call.group;
  const Tensor& x = call.operands[0];
  if (group.size() == 1) return copy_share(x, call.out, worker);
  exchange(call, worker, blocks(x, dim_of(call.numbers[0], x), group.size()),
           [&](const Piece& piece, std::int64_t stride) {
             reduce_piece(call, piece, stride * group.rank(), Reduction::sum, reduce);
           });
}

// (x; dim)
void all_gather(const Call& call, const Worker& worker) {
  const Tensor& x = call.operands[0];
  if (call.group->size() == 1) return copy_share(x, call.out, worker);
  exchange(call, worker, {x},
           [&](const Piece& piece, std::int64_t) { join(call, dim_of(call.numbers[0], x), piece, 0); });
}

// (x; split_dim, concat_dim)
void all_to_all(const Call& call, const Worker& worker) {
  const RankGroup& group = *call.group;
  const Tensor& x = call.operands[0];
  if (group.size() == 1) return copy_share(x, call.out, worker);
  exchange(call, worker, blocks(x, dim_of(call.numbers[0], x), group.size()),
           [&](const Piece& piece, std::int64_t stride) {
             join(call, dim_of(call.numbers[1], x), piece, stride * group.rank());
           });
}

// (x; dim)
void local_slice(const Call& call, const Worker& worker) {
  const Tensor& x = call.operands[0];
  copy_share(block(x, dim_of(call.numbers[0], x), call.group->rank(), call.group->size()), call.out, worker);
}

// (x)
void keep_first(const Call& call, const Worker& worker) {
  if (call.group->rank() == 0) return copy_share(call.operands[0], call.out, worker);
  const std::int64_t bytes = element_bytes(call.out.dtype), total = num_elements(call.out);
  for_runs(call.out, worker.first(total), worker.last(total),
           [&](std::byte* at, std::int64_t, std::int64_t count) { std::memset(at, 0, count * bytes); });
}

}  // namespace tsk
