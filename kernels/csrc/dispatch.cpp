// Which instruction set this processor has, and the kernels for it.
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernel.hpp"

namespace tsk {
namespace {

struct Set {
  const char* name;
  bool (*is_there)();
  std::span<const Kernel> (*kernels)();
};

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
[[maybe_unused]] bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

constexpr Set sets[] = {
#ifndef TSK_WITHOUT_AVX512_BF16
    {"avx512_bf16", has_avx512_bf16, avx512_bf16_kernels},
#endif
    {"avx512", has_avx512, avx512_kernels},
    {"avx2", has_avx2, avx2_kernels},
};

const Set* best() {
  for (const Set& set : sets)
    if (set.is_there()) return &set;
  return nullptr;
}

std::atomic<const Set*>& chosen() {
  static std::atomic<const Set*> set{best()};
  return set;
}

}  // namespace

const char* isa() {
  const Set* set = chosen();
  return set ? set->name : nullptr;
}

bool has_isa(const char* name) {
  for (const Set& set : sets)
    if (std::strcmp(set.name, name) == 0) return set.is_there();
  return false;
}

void use_isa(const char* name) {
  for (const Set& set : sets)
    if (std::strcmp(set.name, name) == 0 && set.is_there()) {
      chosen() = &set;
      return;
    }
  throw std::invalid_argument("this processor has no instruction set `" + std::string(name) + "`");
}

const Kernel* find_kernel(const char* name) {
  const Set* set = chosen();
  if (set)
    for (const Kernel& kernel : set->kernels())
      if (std::strcmp(kernel.name, name) == 0) return &kernel;
  return nullptr;
}

}  // namespace tsk
