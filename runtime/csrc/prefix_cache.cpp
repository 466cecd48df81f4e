#include "prefix_cache.hpp"

#include <algorithm>
#include <bit>
#include <cassert>

namespace tsrun {

PrefixCache::PrefixCache(const CacheLayout& layout, RankGroupId ranks, std::int32_t num_host_pages,
                         const StepClock* clock)
    : layout_(layout), ranks_(ranks), has_host_(num_host_pages > 0), host_pool_(num_host_pages) {
  for (const CacheGroup& group : layout.groups) pools_.emplace_back(group.num_pages, clock);
  // A block has a full page or a copy on the host, so there are never more.
  const auto capacity = static_cast<std::size_t>(layout.groups[0].num_pages + num_host_pages);
  blocks_.resize(capacity);
  pages_.resize(capacity * layout.groups.size(), none<PageId>);
  tokens_.resize(capacity * static_cast<std::size_t>(layout.page_size));
  free_.reserve(capacity);
  for (std::size_t id = capacity; id-- > 0;) free_.push_back(BlockId{static_cast<std::int32_t>(id)});
  index_.resize(std::bit_ceil(2 * capacity), none<BlockId>);
  mask_ = index_.size() - 1;
}

void PrefixCache::retire() {
  for (PagePool& pool : pools_) pool.retire();
}

std::int32_t PrefixCache::num_cached() const {
  std::int32_t total = 0;
  const auto num_blocks = static_cast<std::int32_t>(blocks_.size());
  for (std::int32_t id = 0; id < num_blocks; ++id) {
    total += block(BlockId{id}).parent != no_block && page_of(full_group, BlockId{id}) != none<PageId>;
  }
  return total;
}

std::optional<WritablePage> PrefixCache::take(CacheGroupId group) {
  PagePool& own = pool(group);
  if (own.num_available() == 0) return std::nullopt;
  if (!own.has_free()) evict_oldest(group);
  return own.take();
}

// Of the pages that nobody reads the one unused for the longest. Whoever reads a full page reads its parents too, so
// that a parent was never unused for longer than its child.
void PrefixCache::evict_oldest(CacheGroupId group) {
  PagePool& own = pool(group);
  PageId page = own.oldest_idle();
  if (group == full_group) {
    while (block(own.block_of(page)).device_children > 0) page = own.next_idle(page);
    leave_device(own.block_of(page));
    return;
  }
  pages_[page_place(group, own.block_of(page))] = none<PageId>;
  own.forget(page);
}

// A prefix is of use only with all its full pages, so the pages of the other groups go with them.
void PrefixCache::leave_device(BlockId id) {
  note(false, id);
  for (std::int32_t group = 0; group < layout_.num_groups(); ++group) {
    PageId& page = pages_[page_place(CacheGroupId{group}, id)];
    if (page != none<PageId>) pool(CacheGroupId{group}).forget(std::exchange(page, none<PageId>));
  }
  if (block(id).parent != root_block) --block(block(id).parent).device_children;
  remove_if_nowhere(id);
}

void PrefixCache::remove_if_nowhere(BlockId id) {
  Block& gone = block(id);
  if (page_of(full_group, id) != none<PageId> || gone.host || gone.is_storing) return;
  assert(gone.device_children == 0 && gone.host_children == 0 && gone.host_pins == 0);
  erase(id);
  gone.parent = no_block;
  free_.push_back(id);
}

bool PrefixCache::is_same(BlockId id, BlockId parent, std::uint64_t salt, std::uint64_t hash,
                          std::span<const Token> tokens) const {
  const Block& known = block(id);
  return known.hash == hash && known.parent == parent && known.salt == salt &&
         std::ranges::equal(tokens_of(id), tokens);
}

BlockId PrefixCache::find(BlockId parent, std::uint64_t salt, std::uint64_t hash, std::span<const Token> tokens) const {
  for (std::size_t at = hash & mask_; index_[at] != none<BlockId>; at = (at + 1) & mask_) {
    if (is_same(index_[at], parent, salt, hash, tokens)) return index_[at];
  }
  return none<BlockId>;
}

void PrefixCache::insert(BlockId id) {
  std::size_t at = block(id).hash & mask_;
  while (index_[at] != none<BlockId>) at = (at + 1) & mask_;
  index_[at] = id;
}

// Closes the gap, so that no search ends early at it.
void PrefixCache::erase(BlockId id) {
  std::size_t gap = block(id).hash & mask_;
  while (index_[gap] != id) gap = (gap + 1) & mask_;
  for (std::size_t at = (gap + 1) & mask_; index_[at] != none<BlockId>; at = (at + 1) & mask_) {
    const std::size_t home = block(index_[at]).hash & mask_;
    if (((at - home) & mask_) >= ((at - gap) & mask_)) {
      index_[gap] = index_[at];
      gap = at;
    }
  }
  index_[gap] = none<BlockId>;
}

void PrefixCache::prefetch(std::uint64_t hash) const {
  const BlockId candidate = index_[hash & mask_];
  if (candidate == none<BlockId>) return;
  __builtin_prefetch(&block(candidate));
  const std::span<const Token> tokens = tokens_of(candidate);
  for (std::size_t at = 0; at < tokens.size(); at += 64 / sizeof(Token)) __builtin_prefetch(&tokens[at]);
  __builtin_prefetch(&pages_[page_place(full_group, candidate)]);
}

void PrefixCache::match(std::span<const std::uint64_t> hashes, std::span<const Token> tokens, std::uint64_t salt,
                        Match& found) const {
  found.blocks.clear();
  found.device = found.host = found.num_idle = 0;
  const auto size = static_cast<std::size_t>(layout_.page_size);
  BlockId parent = root_block;
  for (std::size_t at = 0; at < hashes.size(); ++at) {
    // A chain's blocks lie anywhere; what comes next is fetched while this one is compared.
    if (at + 8 < hashes.size()) __builtin_prefetch(&index_[hashes[at + 8] & mask_]);
    if (at + 4 < hashes.size()) prefetch(hashes[at + 4]);
    const BlockId id = find(parent, salt, hashes[at], tokens.subspan(at * size, size));
    if (id == none<BlockId>) break;
    if (page_of(full_group, id) != none<PageId>) {
      ++found.device;
    } else if (block(id).host) {
      ++found.host;
    } else {
      break;
    }
    found.blocks.push_back(id);
    parent = id;
  }
  if (layout_.num_groups() > 1) {
    found.device = joint(found.blocks);
    found.blocks.resize(static_cast<std::size_t>(found.device));
  }
  for (std::int32_t at = 0; at < found.device; ++at) {
    const PageId page = page_of(full_group, found.blocks[static_cast<std::size_t>(at)]);
    found.num_idle += pool(full_group).num_readers(page) == 0;
  }
}

// How many blocks of a chain of full pages every other group can continue from: a window needs the pages that the next
// token reads, a state needs its snapshot there.
std::int32_t PrefixCache::joint(const std::vector<BlockId>& chain) const {
  std::int32_t best = 0;
  std::vector<std::int32_t> runs(layout_.groups.size());
  for (std::int32_t length = 1; length <= static_cast<std::int32_t>(chain.size()); ++length) {
    const BlockId last = chain[static_cast<std::size_t>(length - 1)];
    bool fits = true;
    for (std::int32_t at = 1; at < layout_.num_groups(); ++at) {
      const CacheGroupId group{at};
      std::int32_t& run = runs[place(group)];
      run = page_of(group, last) == none<PageId> ? 0 : run + 1;
      const std::int32_t needed =
          layout_.is_paged(group) ? length - layout_.first_page(group, length * layout_.page_size) : 1;
      fits = fits && run >= needed;
    }
    if (fits) best = length;
  }
  return best;
}

BlockId PrefixCache::find_or_add(BlockId parent, std::uint64_t salt, std::uint64_t hash,
                                 std::span<const Token> tokens) {
  if (parent == no_block) return no_block;
  if (const BlockId known = find(parent, salt, hash, tokens); known != none<BlockId>) return known;
  const BlockId id = free_.back();
  free_.pop_back();
  Block& added = block(id);
  added.hash = hash;
  added.salt = salt;
  added.parent = parent;
  std::ranges::copy(tokens, &tokens_[place(id) * static_cast<std::size_t>(layout_.page_size)]);
  insert(id);
  return id;
}

CachedPage PrefixCache::seal(CacheGroupId group, WritablePage&& page, BlockId id) {
  if (id == no_block) return pool(group).seal(std::move(page), none<BlockId>);
  PageId& own = pages_[page_place(group, id)];
  if (own != none<PageId>) {
    const WritablePage duplicate = std::move(page);  // held by the steps that use it, if any
    return pool(group).share(own);
  }
  own = page.page();
  CachedPage sealed = pool(group).seal(std::move(page), id);
  if (group == full_group) {
    if (block(id).parent != root_block) ++block(block(id).parent).device_children;
    note(true, id);
  }
  return sealed;
}

void PrefixCache::note(bool stored, BlockId id) {
  if (!keeps_events_) return;
  const Block& known = block(id);
  const std::uint64_t parent = known.parent == root_block ? 0 : block(known.parent).hash;
  const std::span<const Token> tokens = stored ? tokens_of(id) : std::span<const Token>();
  events_.push_back({stored, ranks_, known.hash, parent, {tokens.begin(), tokens.end()}});
}

// The host tier.

std::optional<Transfer> PrefixCache::begin_store(BlockId last, TransferId id) {
  Transfer transfer{id, Transfer::Kind::store, ranks_, {}, {}, {}, {}, RequestId{}};
  BlockId at = last;
  for (; at != root_block && !block(at).host; at = block(at).parent) {
    if (block(at).is_storing) return std::nullopt;
    transfer.blocks.push_back(at);
  }
  std::ranges::reverse(transfer.blocks);
  if (at != root_block) ++block(at).host_pins;  // not evicted to make room for its own child
  std::size_t stored = 0;
  for (; stored < transfer.blocks.size(); ++stored) {
    std::optional<HostCopy> copy = host_pool_.take();
    while (!copy && evict_host()) copy = host_pool_.take();
    if (!copy) break;
    const BlockId source = transfer.blocks[stored];
    const PageId page = page_of(full_group, source);
    transfer.pairs.push_back({page, copy->page()});
    transfer.targets.push_back(std::move(*copy));
    block(source).is_storing = true;
    if (block(source).parent != root_block) ++block(block(source).parent).host_children;
  }
  if (at != root_block) --block(at).host_pins;
  transfer.blocks.resize(stored);
  if (stored == 0) return std::nullopt;
  // And all before them, since who reads a page reads those too: only then is every idle page one that can be evicted.
  for (BlockId source = transfer.blocks.back(); source != root_block; source = block(source).parent) {
    transfer.sources.push_back(pool(full_group).share(page_of(full_group, source)));
  }
  return transfer;
}

void PrefixCache::end_store(Transfer&& transfer, bool ok) {
  for (std::size_t at = transfer.blocks.size(); at-- > 0;) {
    const BlockId id = transfer.blocks[at];
    block(id).is_storing = false;
    if (ok) {
      block(id).host.emplace(std::move(transfer.targets[at]));
      link_host(id);
    } else if (block(id).parent != root_block) {
      --block(block(id).parent).host_children;
    }
  }
  for (CachedPage& source : transfer.sources) const CachedPage dropped = std::move(source);  // the last page first
}

void PrefixCache::pin_host(std::span<const BlockId> blocks) {
  for (const BlockId id : blocks) ++block(id).host_pins;
}

void PrefixCache::unpin_host(std::span<const BlockId> blocks) {
  for (std::size_t at = blocks.size(); at-- > 0;) {
    const BlockId id = blocks[at];
    --block(id).host_pins;
    unlink_host(id);
    link_host(id);
  }
}

// Gives up the copy that was unused for the longest and has none after it.
bool PrefixCache::evict_host() {
  BlockId id = host_first_;
  while (id != none<BlockId> && (block(id).host_children > 0 || block(id).host_pins > 0)) id = block(id).host_next;
  if (id == none<BlockId>) return false;
  unlink_host(id);
  block(id).host.reset();
  if (block(id).parent != root_block) --block(block(id).parent).host_children;
  remove_if_nowhere(id);
  return true;
}

void PrefixCache::link_host(BlockId id) {
  block(id).host_previous = host_last_;
  block(id).host_next = none<BlockId>;
  (host_last_ == none<BlockId> ? host_first_ : block(host_last_).host_next) = id;
  host_last_ = id;
}

void PrefixCache::unlink_host(BlockId id) {
  const Block& gone = block(id);
  (gone.host_previous == none<BlockId> ? host_first_ : block(gone.host_previous).host_next) = gone.host_next;
  (gone.host_next == none<BlockId> ? host_last_ : block(gone.host_next).host_previous) = gone.host_previous;
}

}  // namespace tsrun
