// Ops that move rows: into a step, within it, and into the caches. Bytes, whatever their type.
#pragma once

#include "kernel.hpp"

namespace tsk {

void embedding(const Call& call, const Worker& worker);
void copy_rows(const Call& call, const Worker& worker);
void take_rows(const Call& call, const Worker& worker);
void cache_append(const Call& call, const Worker& worker);
void latent_append(const Call& call, const Worker& worker);

// The cosines and sines of each position, kept for all programs of the process; grown to the positions of the step.
void prepare_rope(Call& call);

}  // namespace tsk
