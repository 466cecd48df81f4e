// Kernels for AVX-512 with products of bf16 pairs.
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "collectives.hpp"
#include "kernel.hpp"
#include "moves.hpp"

#define TSK_ISA avx512_bf16
#define TSK_LANES 16
#define TSK_DOT_BF16 1
#include "kernels.hpp"

std::span<const tsk::Kernel> tsk::avx512_bf16_kernels() { return avx512_bf16::kernels; }
