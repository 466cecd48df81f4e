// Ids that do not mix: an enum class converts to nothing by itself, and compares and hashes as its integer.
#pragma once

#include <cstdint>

namespace tsrun {

enum class RequestId : std::int64_t {};
enum class StepId : std::int64_t {};
enum class GroupId : std::int32_t {};
enum class PageId : std::int32_t {};

using Token = std::int32_t;

}  // namespace tsrun
