// How a thread looks for what it waits for before it sleeps.
#pragma once

#include "tensor.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tsk {

// About a millisecond: for who has a processor to itself.
constexpr int patient_spins = 20000;

TSK_INLINE void spin_pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace tsk
