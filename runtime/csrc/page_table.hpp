// The pages of one sequence, in the order of its positions, all from its group's pool.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "pages.hpp"

namespace tsrun {

constexpr std::int64_t pages_for(std::int64_t num_tokens, std::int32_t page_size) {
  return (num_tokens + page_size - 1) / page_size;
}

class PageTable {
 public:
  PageTable(std::int32_t page_size, GroupId group) : page_size_(page_size), group_(group) {}
  // Said aloud: a vector claims to be copyable whatever it holds.
  PageTable(PageTable&&) = default;
  PageTable& operator=(PageTable&&) = default;

  void add(PageLease&& lease) { leases_.push_back(std::move(lease)); }

  std::int32_t size() const { return static_cast<std::int32_t>(leases_.size()); }
  std::int32_t capacity() const { return size() * page_size_; }  // in tokens

  GroupId group() const { return group_; }
  PageId page(std::int32_t index) const { return leases_[static_cast<std::size_t>(index)].page(); }

  std::int32_t slot(std::int32_t position) const {
    return static_cast<std::int32_t>(page(position / page_size_)) * page_size_ + position % page_size_;
  }

 private:
  std::vector<PageLease> leases_;
  std::int32_t page_size_;
  GroupId group_;
};

}  // namespace tsrun
