#include "page_table.hpp"

#include <algorithm>
#include <cassert>

#include "request.hpp"

namespace tsrun {

PageTable::PageTable(PrefixCache* cache, SlotId row, bool is_cached)
    : cache_(cache), row_(row), chain_(is_cached ? root_block : no_block) {
  const CacheLayout& layout = cache->layout();
  for (std::int32_t group = 0; group < layout.num_groups(); ++group) {
    if (layout.is_paged(CacheGroupId{group})) pages_.push_back({CachedPages(&cache->pool(CacheGroupId{group})), {}});
  }
}

std::int32_t PageTable::num_owned(CacheGroupId group) const {
  if (place(group) >= pages_.size()) return state_ ? 1 : 0;
  const Pages& own = pages_[place(group)];
  return own.sealed.end() - own.sealed.first() + static_cast<std::int32_t>(own.tail.size());
}

void PageTable::reserve(std::int32_t num_pages) {
  for (Pages& own : pages_) own.sealed.reserve(num_pages);
  if (cache_->layout().has_states()) blocks_.reserve(static_cast<std::size_t>(num_pages));
}

void PageTable::begin(const Match& match, TableUpdates& updates) {
  const CacheLayout& layout = cache_->layout();
  if (match.device == 0) return;
  for (std::size_t at = 0; at < pages_.size(); ++at) {
    const CacheGroupId group{static_cast<std::int32_t>(at)};
    CachedPages& sealed = pages_[at].sealed;
    const std::int32_t first = layout.first_page(group, match.device * layout.page_size);
    sealed.start_at(first);
    for (std::int32_t index = first; index < match.device; ++index) {
      sealed.add(cache_->pool(group).share(cache_->page_of(group, match.blocks[static_cast<std::size_t>(index)])));
      updates.set(group, row_, index, sealed[index]);
    }
  }
  const auto device = match.blocks.begin() + match.device;
  chain_ = *(device - 1);
  if (layout.has_states()) {
    const CacheGroupId states = layout.state_group();
    restore_ = cache_->pool(states).share(cache_->page_of(states, chain_));
    blocks_.assign(match.blocks.begin(), device);
  }
}

bool PageTable::extend(TableUpdates& updates) {
  for (std::size_t at = 0; at < pages_.size(); ++at) {
    if (cache_->pool(CacheGroupId{static_cast<std::int32_t>(at)}).num_available() == 0) return false;
  }
  const std::int32_t index = num_pages();
  for (std::size_t at = 0; at < pages_.size(); ++at) {
    const CacheGroupId group{static_cast<std::int32_t>(at)};
    pages_[at].tail.push_back(*cache_->take(group));
    updates.set(group, row_, index, pages_[at].tail.back().page());
  }
  return true;
}

bool PageTable::take_state(TableUpdates& updates) {
  if (!cache_->layout().has_states() || state_) return true;
  const CacheGroupId states = cache_->layout().state_group();
  state_ = cache_->take(states);
  if (state_) updates.set(states, row_, 0, state_->page());
  return state_.has_value();
}

void PageTable::seal(Request& request, std::int32_t num_cached, TableUpdates& updates) {
  const CacheLayout& layout = cache_->layout();
  const std::int32_t begin = full().sealed.end();
  const std::int32_t end = num_cached / layout.page_size;
  if (end > begin) {
    for (std::int32_t index = begin; index < end; ++index) {
      const auto old = static_cast<std::size_t>(index - begin);
      if (chain_ != no_block) {
        const std::uint64_t hash = request.hash(index, layout.page_size);
        chain_ = cache_->find_or_add(chain_, request.salt(), hash, request.page(index, layout.page_size));
      }
      for (std::size_t at = 0; at < pages_.size(); ++at) {
        const CacheGroupId group{static_cast<std::int32_t>(at)};
        const PageId written = pages_[at].tail[old].page();
        CachedPage sealed = cache_->seal(group, std::move(pages_[at].tail[old]), chain_);
        if (sealed.page() != written) updates.set(group, row_, index, sealed.page());
        pages_[at].sealed.add(std::move(sealed));
      }
      if (layout.has_states()) blocks_.push_back(chain_);
    }
    for (Pages& own : pages_) own.tail.erase(own.tail.begin(), own.tail.begin() + (end - begin));
  }
  for (std::size_t at = 1; at < pages_.size(); ++at) {
    pages_[at].sealed.skip_to(layout.first_page(CacheGroupId{static_cast<std::int32_t>(at)}, num_cached));
  }
}

void PageTable::repeat(TableUpdates& updates) const {
  for (std::size_t at = 0; at < pages_.size(); ++at) {
    const CacheGroupId group{static_cast<std::int32_t>(at)};
    for (std::int32_t index = pages_[at].sealed.first(); index < num_pages(); ++index) {
      updates.set(group, row_, index, page(group, index));
    }
  }
  if (state_) updates.set(cache_->layout().state_group(), row_, 0, state_->page());
}

// The last page first, as in CachedPages; of a group the pages that were not sealed hold nothing to find again.
void PageTable::give_back(Landed landed) {
  for (std::size_t at = 0; at < pages_.size(); ++at) {
    PagePool& pool = cache_->pool(CacheGroupId{static_cast<std::int32_t>(at)});
    while (!pages_[at].tail.empty()) {
      pool.give_back(std::move(pages_[at].tail.back()), landed);
      pages_[at].tail.pop_back();
    }
    pages_[at].sealed.give_back(landed);
  }
  if (!cache_->layout().has_states()) return;
  PagePool& pool = cache_->pool(cache_->layout().state_group());
  if (state_) pool.give_back(std::move(*state_), landed);
  if (restore_) pool.give_back(std::move(*restore_), landed);
  for (Snapshot& taken : snapshots_) pool.give_back(std::move(taken.page), landed);
  state_.reset();
  restore_.reset();
  snapshots_.clear();
}

// Best effort: a state whose pages are all in use is not worth another request's.
std::optional<PageId> PageTable::snapshot(StepId step, std::int32_t position) {
  std::optional<WritablePage> copy = cache_->take(cache_->layout().state_group());
  if (!copy) return std::nullopt;
  const PageId page = copy->page();
  snapshots_.push_back({step, position, std::move(*copy)});
  return page;
}

// After its step: the copy becomes the block's that ends at its position, or goes back.
void PageTable::end_snapshot(StepId step, bool ok) {
  const auto taken = std::ranges::find(snapshots_, step, &Snapshot::step);
  if (taken == snapshots_.end()) return;
  const auto pages = static_cast<std::size_t>(taken->position / cache_->layout().page_size);
  if (ok && pages <= blocks_.size() && blocks_[pages - 1] != no_block) {
    const CachedPage kept = cache_->seal(cache_->layout().state_group(), std::move(taken->page), blocks_[pages - 1]);
  }
  snapshots_.erase(taken);
}

}  // namespace tsrun
