// The pages of one running request in every group of caches, in the order of its positions.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "ids.hpp"
#include "pages.hpp"
#include "prefix_cache.hpp"

namespace tsrun {

class Request;

// Entries of the block tables that changed since the last plan: group, row, index, page; flat.
class TableUpdates {
 public:
  void set(CacheGroupId group, SlotId row, std::int32_t index, PageId page) {
    entries_.insert(entries_.end(), {number(group), number(row), index, number(page)});
  }
  std::vector<std::int32_t>& entries() { return entries_; }
  const std::vector<std::int32_t>& entries() const { return entries_; }

 private:
  std::vector<std::int32_t> entries_;
};

class PageTable {
 public:
  PageTable(PrefixCache* cache, SlotId row, bool is_cached);
  PageTable(PageTable&&) = default;
  PageTable& operator=(PageTable&&) = default;

  PrefixCache& cache() const { return *cache_; }
  // Tokens that have a page in every paged group.
  std::int32_t capacity() const { return num_pages() * cache_->layout().page_size; }
  std::int32_t num_pages() const { return full().sealed.end() + static_cast<std::int32_t>(full().tail.size()); }
  std::int32_t num_owned(CacheGroupId group) const;
  BlockId chain() const { return chain_; }  // the block of the last sealed page

  // So that no step allocates.
  void reserve(std::int32_t num_pages);
  // Starts with what the cache has of the prompt.
  void begin(const Match& match, TableUpdates& updates);
  // One more page in every paged group, or in none.
  bool extend(TableUpdates& updates);
  // The page of the recurrent state, where the model has one.
  bool take_state(TableUpdates& updates);

  // Pages that `num_cached` tokens fill become cached pages; those that no later token reads are let go.
  void seal(Request& request, std::int32_t num_cached, TableUpdates& updates);
  // Says every entry again.
  void repeat(TableUpdates& updates) const;
  void give_back(Landed landed);

  PageId page(CacheGroupId group, std::int32_t index) const {
    const Pages& own = pages_[place(group)];
    return index < own.sealed.end() ? own.sealed[index]
                                    : own.tail[static_cast<std::size_t>(index - own.sealed.end())].page();
  }
  // Where a token's keys and values go.
  std::int32_t slot(CacheGroupId group, std::int32_t position) const {
    const std::int32_t size = cache_->layout().page_size;
    return number(page(group, position / size)) * size + position % size;
  }
  PageId state() const { return state_->page(); }

  // The recurrent state: where it comes from before the first step, and its copies under way.
  [[nodiscard("a share that nobody owns is lost to its reader")]] std::optional<CachedPage> take_restore() {
    return std::exchange(restore_, std::nullopt);
  }
  std::optional<PageId> snapshot(StepId step, std::int32_t position);
  void end_snapshot(StepId step, bool ok);

  template <typename Visit>
  void describe(StepId retired, Visit&& visit) const;

 private:
  friend struct Audit;  // tests/model/audit.hpp

  struct Pages {
    CachedPages sealed;
    std::vector<WritablePage> tail;  // from sealed.end() on
  };
  struct Snapshot {
    StepId step;
    std::int32_t position;
    WritablePage page;
  };

  const Pages& full() const { return pages_[0]; }

  PrefixCache* cache_;
  SlotId row_;
  BlockId chain_;
  std::vector<Pages> pages_;  // of each paged group
  std::optional<WritablePage> state_;
  std::optional<CachedPage> restore_;
  std::vector<Snapshot> snapshots_;
  std::vector<BlockId> blocks_;  // of the sealed pages, where there are snapshots to give to them
};

template <typename Visit>
void PageTable::describe(StepId retired, Visit&& visit) const {
  visit(number(chain_));
  for (const Pages& own : pages_) {
    visit(own.sealed.first());
    for (std::int32_t index = own.sealed.first(); index < own.sealed.end(); ++index) visit(number(own.sealed[index]));
    visit(own.sealed.end());
    for (const WritablePage& page : own.tail) visit(number(page.page()));
  }
  visit(state_ ? number(state_->page()) : -1);
  visit(restore_ ? number(restore_->page()) : -1);
  for (const Snapshot& taken : snapshots_) {
    visit(number(taken.step) - number(retired));
    visit(taken.position);
    visit(number(taken.page.page()));
  }
  for (const BlockId block : blocks_) visit(number(block));
}

}  // namespace tsrun
