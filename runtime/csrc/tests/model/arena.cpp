#include "model/arena.hpp"

#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>

namespace tsrun::model {

namespace {

constexpr std::size_t capacity = std::size_t{4} << 20U;
constexpr std::size_t header_bytes = 16;  // before each block: its class of size

struct FreeBlock {
  FreeBlock* next;
};

// At the front of the memory, so that it is saved with it. Sizes are powers of two.
struct Head {
  std::size_t used;
  std::array<FreeBlock*, 32> free;
};

alignas(64) std::byte memory[capacity];
bool is_used = false;
std::int64_t num_allocated = 0;

Head& head() { return *reinterpret_cast<Head*>(memory); }

void* take(std::size_t size) {
  const auto rank = static_cast<std::size_t>(std::bit_width(std::max<std::size_t>(size, 16) - 1));
  if (FreeBlock* block = head().free[rank]) {
    head().free[rank] = block->next;
    return block;
  }
  const std::size_t begin = head().used;
  head().used += header_bytes + (std::size_t{1} << rank);
  if (head().used > capacity) std::abort();
  std::memcpy(&memory[begin], &rank, sizeof rank);
  return &memory[begin + header_bytes];
}

void give(void* block) {
  std::size_t rank = 0;
  std::memcpy(&rank, static_cast<std::byte*>(block) - header_bytes, sizeof rank);
  auto* freed = static_cast<FreeBlock*>(block);
  freed->next = head().free[rank];
  head().free[rank] = freed;
}

}  // namespace

void Arena::reset() {
  head().used = (sizeof(Head) + 63) / 64 * 64;
  head().free.fill(nullptr);
}

void Arena::save(Snapshot& snapshot) { snapshot.assign(memory, memory + head().used); }
void Arena::restore(const Snapshot& snapshot) { std::memcpy(memory, snapshot.data(), snapshot.size()); }
std::int64_t Arena::num_allocations() { return num_allocated; }
Arena::Use::Use() { is_used = true; }
Arena::Use::~Use() { is_used = false; }
void Arena::leave() { is_used = false; }

static void* allocate(std::size_t size) {
  ++num_allocated;
  if (is_used) return take(size);
  if (void* block = std::malloc(size == 0 ? 1 : size)) return block;
  throw std::bad_alloc();
}

static void release(void* block) noexcept {
  if (block == nullptr) return;
  auto* at = static_cast<std::byte*>(block);
  if (at >= memory && at < memory + capacity) {
    give(block);
  } else {
    std::free(block);
  }
}

}  // namespace tsrun::model

void* operator new(std::size_t size) { return tsrun::model::allocate(size); }
void* operator new[](std::size_t size) { return tsrun::model::allocate(size); }
void operator delete(void* block) noexcept { tsrun::model::release(block); }
void operator delete[](void* block) noexcept { tsrun::model::release(block); }
void operator delete(void* block, std::size_t) noexcept { tsrun::model::release(block); }
void operator delete[](void* block, std::size_t) noexcept { tsrun::model::release(block); }
