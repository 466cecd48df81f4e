// What one group of ranks remembers: the pages of all its caches, and which prompts they belong to.
//
// A block is a page's worth of tokens after a given prefix. It may have a page on the device in each group of caches
// and a copy on the host. Blocks form chains from the first page of a prompt on; what lies on the device is closed
// towards the front (a block is there only when its parent is), and so is what lies on the host.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "cache_layout.hpp"
#include "host_tier.hpp"
#include "ids.hpp"
#include "pages.hpp"

namespace tsrun {

// The parent of first blocks.
inline constexpr BlockId root_block{-1};
// After a block whose hash another one has, or with the cache off: what follows can not be found again.
inline constexpr BlockId no_block{-2};

// What the cache has of a prompt. Kept by the caller, so that a search allocates nothing.
struct Match {
  std::vector<BlockId> blocks;  // the chain found: `device` blocks, then `host` blocks
  std::int32_t device = 0;
  std::int32_t host = 0;
  std::int32_t num_idle = 0;  // of the device's full pages: nobody reads them, so that sharing them takes them
};

struct PageEvent {
  bool stored;  // else removed
  RankGroupId ranks;
  std::uint64_t hash;
  std::uint64_t parent;  // 0: the first of its prompt
  std::vector<Token> tokens;
};

class PrefixCache {
 public:
  PrefixCache(const CacheLayout& layout, RankGroupId ranks, std::int32_t num_host_pages, const StepClock* clock);
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  const CacheLayout& layout() const { return layout_; }
  PagePool& pool(CacheGroupId group) { return pools_[place(group)]; }
  const PagePool& pool(CacheGroupId group) const { return pools_[place(group)]; }
  void retire();

  // A page to write, if need be of the block that was not used for the longest.
  [[nodiscard("a page that nobody owns is lost to its writer")]] std::optional<WritablePage> take(CacheGroupId group);

  // The longest prefix that every group of caches can continue from. hashes: of the pages that may be used.
  void match(std::span<const std::uint64_t> hashes, std::span<const Token> tokens, std::uint64_t salt,
             Match& found) const;
  PageId page_of(CacheGroupId group, BlockId block) const { return pages_[page_place(group, block)]; }

  // The block of these tokens after `parent`, whose page the caller reads or is about to seal.
  BlockId find_or_add(BlockId parent, std::uint64_t salt, std::uint64_t hash, std::span<const Token> tokens);
  // The page becomes the block's; where it has one already that one is shared, and the new one given back.
  CachedPage seal(CacheGroupId group, TSRUN_OWNED WritablePage&& page, BlockId block);

  // The host tier. A store begins for what the chain up to `last` lacks on the host, null when that is nothing.
  bool has_host() const { return has_host_; }
  [[nodiscard("a transfer that nobody starts never ends")]] std::optional<Transfer> begin_store(BlockId last,
                                                                                                TransferId id);
  void end_store(Transfer&& transfer, bool ok);
  void pin_host(std::span<const BlockId> blocks);
  void unpin_host(std::span<const BlockId> blocks);
  HostPageId host_page(BlockId block) const { return blocks_[place(block)].host->page(); }

  void keep_events() { keeps_events_ = true; }
  std::vector<PageEvent> take_events() { return std::exchange(events_, {}); }

  std::int32_t num_cached() const;  // full pages that a prompt could find

  template <typename Visit>
  void describe(Visit&& visit) const;

 private:
  friend struct Audit;  // tests/model/audit.hpp

  struct Block {
    std::uint64_t hash = 0;
    std::uint64_t salt = 0;
    BlockId parent = no_block;  // no_block: not in use
    std::int32_t device_children = 0;
    std::int32_t host_children = 0;  // with a copy on the host, or one under way
    std::int32_t host_pins = 0;
    bool is_storing = false;
    std::optional<HostCopy> host;
    BlockId host_previous = none<BlockId>;  // among the blocks with copies, the longest unused first
    BlockId host_next = none<BlockId>;
  };

  std::size_t page_place(CacheGroupId group, BlockId block) const {
    return place(block) * layout_.groups.size() + place(group);
  }
  Block& block(BlockId id) { return blocks_[place(id)]; }
  const Block& block(BlockId id) const { return blocks_[place(id)]; }
  std::span<const Token> tokens_of(BlockId id) const {
    const auto size = static_cast<std::size_t>(layout_.page_size);
    return {&tokens_[place(id) * size], size};
  }
  bool is_same(BlockId id, BlockId parent, std::uint64_t salt, std::uint64_t hash, std::span<const Token> tokens) const;
  BlockId find(BlockId parent, std::uint64_t salt, std::uint64_t hash, std::span<const Token> tokens) const;
  std::int32_t joint(const std::vector<BlockId>& chain) const;
  void prefetch(std::uint64_t hash) const;

  void insert(BlockId id);
  void erase(BlockId id);
  void evict_oldest(CacheGroupId group);
  void leave_device(BlockId id);
  void remove_if_nowhere(BlockId id);
  void link_host(BlockId id);
  void unlink_host(BlockId id);
  bool evict_host();
  void note(bool stored, BlockId id);

  const CacheLayout layout_;
  const RankGroupId ranks_;
  const bool has_host_;
  std::deque<PagePool> pools_;
  HostPool host_pool_;
  std::vector<Block> blocks_;
  std::vector<PageId> pages_;   // [blocks, groups]
  std::vector<Token> tokens_;   // [blocks, page_size]
  std::vector<BlockId> free_;   // ids of no block
  std::vector<BlockId> index_;  // by hash, linear probing; a power of two, at most half full
  std::size_t mask_;
  BlockId host_first_ = none<BlockId>;
  BlockId host_last_ = none<BlockId>;
  bool keeps_events_ = false;
  std::vector<PageEvent> events_;
};

template <typename Visit>
void PrefixCache::describe(Visit&& visit) const {
  for (const PagePool& pool : pools_) pool.describe(visit);
  for (std::size_t id = 0; id < blocks_.size(); ++id) {
    const Block& known = blocks_[id];
    visit(number(known.parent));
    if (known.parent == no_block) continue;
    visit(static_cast<std::int64_t>(known.hash));
    visit(static_cast<std::int64_t>(known.salt));
    visit(known.host ? number(known.host->page()) : -1);
    visit(known.host_pins + (known.is_storing ? 1000 : 0));
    for (std::int32_t group = 0; group < layout_.num_groups(); ++group) {
      visit(number(page_of(CacheGroupId{group}, BlockId{static_cast<std::int32_t>(id)})));
    }
  }
  for (BlockId id = host_first_; id != none<BlockId>; id = block(id).host_next) visit(number(id));
}

}  // namespace tsrun
