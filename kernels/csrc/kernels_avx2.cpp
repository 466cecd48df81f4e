// Kernels for AVX2.
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "collectives.hpp"
#include "kernel.hpp"
#include "moves.hpp"

#define TSK_ISA avx2
#define TSK_LANES 8
#include "kernels.hpp"

std::span<const tsk::Kernel> tsk::avx2_kernels() { return avx2::kernels; }
