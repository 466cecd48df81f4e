// Collectives over a group of ranks. A kernel of each instruction set brings how numbers are reduced; how they travel
// is here, once for all.
#pragma once

#include "kernel.hpp"

namespace tsk {

enum class Reduction : std::uint8_t { sum, max };  // in the order of REDUCTIONS in tskernels/simd.py

// `count` elements of each of `num_parts` into `to`, which may be a part: first to last, in f32 where they are floats,
// rounded once.
using Reduce = void (*)(DType dtype, Reduction reduction, const std::byte* const* parts, int num_parts, std::byte* to,
                        std::int64_t count);

void all_reduce(const Call& call, const Worker& worker, Reduce reduce);
void reduce_scatter(const Call& call, const Worker& worker, Reduce reduce);
void all_gather(const Call& call, const Worker& worker);
void all_to_all(const Call& call, const Worker& worker);
void local_slice(const Call& call, const Worker& worker);
void keep_first(const Call& call, const Worker& worker);

}  // namespace tsk
