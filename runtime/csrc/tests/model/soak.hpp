// Long runs: what must not grow, and what must not allocate.
#pragma once

#include <cstdint>

namespace tsrun::model {

// Random traffic for so many steps: memory stays as it is, and every page is there at the end. False when not.
bool soak(std::int64_t steps);

// Steps of which each decodes one token of 64 requests allocate nothing.
bool decodes_without_allocation();

}  // namespace tsrun::model
