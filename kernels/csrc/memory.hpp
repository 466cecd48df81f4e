// Memory of the process for intermediates: whole pages, huge ones where the system gives them, touched only where it is
// used.
#pragma once

#include <cstddef>

namespace tsk {

class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // At least so many bytes. What was there may be gone; returns whether the address has changed.
  bool reserve(std::size_t bytes);
  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace tsk
