#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace tsk {
namespace {
constexpr std::size_t granule = std::size_t{2} << 20;
}

Memory::~Memory() {
  if (data_) munmap(data_, size_);
}

bool Memory::reserve(std::size_t bytes) {
  if (bytes <= size_) return false;
  const std::size_t size = (std::max(bytes, size_ + size_ / 2) + granule - 1) / granule * granule;
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  madvise(data, size, MADV_HUGEPAGE);  // as the system likes: without them everything works, too
  if (data_) munmap(data_, size_);
  data_ = static_cast<std::byte*>(data);
  size_ = size;
  return true;
}

}  // namespace tsk
