// Kernels for AVX-512.
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "collectives.hpp"
#include "kernel.hpp"
#include "moves.hpp"

#define TSK_ISA avx512
#define TSK_LANES 16
#include "kernels.hpp"

std::span<const tsk::Kernel> tsk::avx512_kernels() { return avx512::kernels; }
