// Ids that do not mix: an enum class converts to nothing by itself, and compares and hashes as its integer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace tsrun {

enum class RequestId : std::int64_t {};
enum class StepId : std::int64_t {};
enum class UserId : std::int64_t {};
enum class TransferId : std::int64_t {};
enum class RankGroupId : std::int32_t {};   // ranks that keep sequences of their own
enum class CacheGroupId : std::int32_t {};  // caches that share block tables: 0 is full attention
enum class PageId : std::int32_t {};        // of the device, in one group of ranks and of caches
enum class HostPageId : std::int32_t {};
enum class SlotId : std::int32_t {};   // the row of the block tables that a running request has
enum class BlockId : std::int32_t {};  // a page's worth of tokens that the prefix cache knows, wherever its pages are

using Token = std::int32_t;
using Seconds = double;

// The integer of an id, for arithmetic and for what leaves the scheduler.
template <typename Id>
  requires std::is_enum_v<Id>
constexpr std::underlying_type_t<Id> number(Id id) {
  return static_cast<std::underlying_type_t<Id>>(id);
}

// The id as a place in an array that has an element for each.
template <typename Id>
  requires std::is_enum_v<Id>
constexpr std::size_t place(Id id) {
  return static_cast<std::size_t>(id);
}

template <typename Id>
inline constexpr Id none{-1};

inline constexpr CacheGroupId full_group{0};

}  // namespace tsrun
