// Looks into a scheduler, and counts everything that it owns.
#pragma once

#include <optional>

#include "model/reference.hpp"
#include "scheduler.hpp"

namespace tsrun {

struct Audit {
  // Every page has one use, and the owners that this use needs; every list and counter says the same. Throws Violation.
  static void check(const Scheduler& scheduler);

  static const Limits& limits(const Scheduler& scheduler) { return scheduler.limits_; }
  static const PrefixCache& cache(const Scheduler& scheduler, RankGroupId ranks) {
    return scheduler.caches_[place(ranks)];
  }
  static std::int32_t num_outstanding(const Scheduler& scheduler) { return scheduler.num_outstanding(); }
  static bool has_transfers(const Scheduler& scheduler) { return !scheduler.transfers_.empty(); }
  static const Entry* entry(const Scheduler& scheduler, RequestId id) { return scheduler.find(id); }
  // Who is the last to give way.
  static const Entry* oldest(const Scheduler& scheduler, RankGroupId ranks);

  static bool is_free(const PagePool& pool, PageId page) { return pool.info(page).use == PagePool::Use::free; }
  static bool is_writable(const PagePool& pool, PageId page) { return pool.info(page).use == PagePool::Use::writable; }
  static bool is_held(const PagePool& pool, PageId page) { return pool.info(page).use == PagePool::Use::held; }
  static bool is_free(const Scheduler& scheduler, SlotId slot);

  // Calls visit(group, page, content after the block's last token, contents of its tokens) for each page that a block
  // has, and visit_host(page, contents) for each copy.
  template <typename Visit, typename VisitHost>
  static void each_block(const PrefixCache& cache, Visit&& visit, VisitHost&& visit_host);

  // For negative tests: what a bug could do.
  static bool lose_free_page(Scheduler& scheduler);
  static bool free_held_page(Scheduler& scheduler);

 private:
  static void check_pool(const Scheduler& scheduler, RankGroupId ranks, CacheGroupId group);
  static void check_blocks(const PrefixCache& cache);
  static void check_pins(const Scheduler& scheduler, RankGroupId ranks);
  static void check_requests(const Scheduler& scheduler);
};

template <typename Visit, typename VisitHost>
void Audit::each_block(const PrefixCache& cache, Visit&& visit, VisitHost&& visit_host) {
  std::vector<BlockId> chain;
  std::vector<model::Content> contents;
  for (std::size_t at = 0; at < cache.blocks_.size(); ++at) {
    if (cache.blocks_[at].parent == no_block) continue;
    const BlockId block{static_cast<std::int32_t>(at)};
    chain.clear();
    for (BlockId each = block; each != root_block; each = cache.block(each).parent) chain.push_back(each);
    model::Content content = model::content_root(cache.block(block).salt);
    for (std::size_t each = chain.size(); each-- > 0;) {
      contents.clear();
      for (const Token token : cache.tokens_of(chain[each]))
        contents.push_back(content = model::content_after(content, token));
    }
    for (std::int32_t group = 0; group < cache.layout().num_groups(); ++group) {
      const PageId page = cache.page_of(CacheGroupId{group}, block);
      if (page != none<PageId>) visit(CacheGroupId{group}, page, contents);
    }
    if (cache.block(block).host) visit_host(cache.block(block).host->page(), contents);
  }
}

}  // namespace tsrun
