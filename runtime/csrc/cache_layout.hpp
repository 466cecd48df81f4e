// The groups of caches that a model has, and what a sequence of some length needs of each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ids.hpp"

namespace tsrun {

constexpr std::int64_t pages_for(std::int64_t num_tokens, std::int32_t page_size) {
  return (num_tokens + page_size - 1) / page_size;
}

enum class CacheKind : std::uint8_t {
  full,    // every page of a sequence stays: attention over all keys, or their latents
  window,  // pages that lie before the last `extent` tokens are released while the sequence runs
  state,  // one page a sequence, overwritten by every step; copied each `extent` tokens, so that others may start there
};

struct CacheGroup {
  CacheKind kind;
  std::int32_t num_pages;  // of each group of ranks
  std::int32_t extent = 0;
};

// Group 0 is full; then windows; then at most one of states.
struct CacheLayout {
  std::int32_t page_size;
  std::vector<CacheGroup> groups;

  std::int32_t num_groups() const { return static_cast<std::int32_t>(groups.size()); }
  const CacheGroup& operator[](CacheGroupId group) const { return groups[place(group)]; }

  // The first page that a token at `position` still reads.
  std::int32_t first_page(CacheGroupId group, std::int32_t position) const {
    const CacheGroup& spec = (*this)[group];
    if (spec.kind == CacheKind::full) return 0;
    return std::max(0, position - spec.extent + 1) / page_size;
  }
  bool is_paged(CacheGroupId group) const { return (*this)[group].kind != CacheKind::state; }
  bool has_states() const { return groups.back().kind == CacheKind::state; }
  CacheGroupId state_group() const { return CacheGroupId{num_groups() - 1}; }
  std::int32_t snapshot_tokens() const { return has_states() ? groups.back().extent : 0; }

  // Pages that a sequence of `length` tokens has at once at most, when up to `chunk` of them are computed in a step.
  std::int64_t most_pages(CacheGroupId group, std::int64_t length, std::int64_t chunk) const {
    const CacheGroup& spec = (*this)[group];
    if (spec.kind == CacheKind::state) return 1;
    const std::int64_t all = pages_for(length, page_size);
    if (spec.kind == CacheKind::full) return all;
    return std::min(all, pages_for(spec.extent + chunk, page_size) + 1);
  }
};

}  // namespace tsrun
