// Instructions that only make a register of registers.
#pragma once

#include "program.hpp"

namespace ptx {

using Pure = std::uint64_t (*)(const Instr&, const std::uint64_t*);

// The function of an instruction, or null where it is not one of these. It may set `instr.sub`.
Pure find_pure(Instr& instr);

}  // namespace ptx
