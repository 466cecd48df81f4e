#include "model/audit.hpp"

#include <algorithm>
#include <map>
#include <numeric>

namespace tsrun {

using model::broken;

namespace {

// Counts the leases of one pool's pages.
struct Leases {
  std::vector<std::int32_t> writers;
  std::vector<std::int32_t> readers;
};

}  // namespace

bool Audit::is_free(const Scheduler& scheduler, SlotId slot) {
  return std::ranges::find(scheduler.slots_.free_, slot) != scheduler.slots_.free_.end();
}

const Entry* Audit::oldest(const Scheduler& scheduler, RankGroupId ranks) {
  for (const Entry* entry : scheduler.running_) {
    if (&entry->seat().pages.cache() == &cache(scheduler, ranks)) return entry;
  }
  return nullptr;
}

bool Audit::lose_free_page(Scheduler& scheduler) {
  std::vector<PageId>& free = scheduler.caches_[0].pool(full_group).free_;
  if (free.empty()) return false;
  free.pop_back();
  return true;
}

bool Audit::free_held_page(Scheduler& scheduler) {
  PagePool& pool = scheduler.caches_[0].pool(full_group);
  for (std::int32_t page = 0; page < pool.num_pages(); ++page) {
    PagePool::Info& info = pool.info(PageId{page});
    if (info.use != PagePool::Use::held || info.block != none<BlockId>) continue;
    --pool.num_held_;
    pool.settle(PageId{page});
    return true;
  }
  return false;
}

void Audit::check(const Scheduler& scheduler) {
  for (std::int32_t ranks = 0; ranks < scheduler.limits_.num_rank_groups; ++ranks) {
    const PrefixCache& own = cache(scheduler, RankGroupId{ranks});
    for (std::int32_t group = 0; group < own.layout().num_groups(); ++group) {
      check_pool(scheduler, RankGroupId{ranks}, CacheGroupId{group});
    }
    check_blocks(own);
    check_pins(scheduler, RankGroupId{ranks});
    std::size_t num_host = own.host_pool_.free_.size();
    for (const auto& block : own.blocks_) num_host += block.host.has_value();
    for (const auto& pending : scheduler.transfers_) {
      if (pending.transfer.ranks == RankGroupId{ranks}) num_host += pending.transfer.targets.size();
    }
    if (num_host != static_cast<std::size_t>(scheduler.limits_.num_host_pages)) {
      broken("of ", scheduler.limits_.num_host_pages, " host pages ", num_host,
             " are free, of a block or of a transfer");
    }
  }
  check_requests(scheduler);
}

void Audit::check_pool(const Scheduler& scheduler, RankGroupId ranks, CacheGroupId group) {
  using Use = PagePool::Use;
  const PrefixCache& own = cache(scheduler, ranks);
  const PagePool& pool = own.pool(group);
  const std::size_t num_pages = pool.pages_.size();
  const auto where = [&](std::size_t page) {
    return model::Violation("page " + std::to_string(page) + " of cache group " + std::to_string(number(group)) + ": ");
  };

  Leases leases{std::vector<std::int32_t>(num_pages), std::vector<std::int32_t>(num_pages)};
  for (const auto& [id, entry] : scheduler.live_) {
    if (entry->is_queued() || &entry->seat().pages.cache() != &own) continue;
    const PageTable& table = entry->seat().pages;
    if (own.layout().is_paged(group)) {
      const PageTable::Pages& pages = table.pages_[place(group)];
      for (std::int32_t index = pages.sealed.first(); index < pages.sealed.end(); ++index) {
        ++leases.readers[place(pages.sealed[index])];
      }
      for (const WritablePage& page : pages.tail) ++leases.writers[place(page.page())];
    } else {
      if (table.state_) ++leases.writers[place(table.state_->page())];
      if (table.restore_) ++leases.readers[place(table.restore_->page())];
      for (const PageTable::Snapshot& taken : table.snapshots_) ++leases.writers[place(taken.page.page())];
    }
  }
  for (const auto& pending : scheduler.transfers_) {
    if (pending.transfer.ranks != ranks || group != full_group) continue;
    for (const CachedPage& source : pending.transfer.sources) ++leases.readers[place(source.page())];
  }
  std::vector<std::int32_t> blocks(num_pages, number(none<BlockId>));
  for (std::size_t block = 0; block < own.blocks_.size(); ++block) {
    const PageId page = own.page_of(group, BlockId{static_cast<std::int32_t>(block)});
    if (page == none<PageId>) continue;
    if (own.blocks_[block].parent == no_block) broken("block ", block, " is not in use and has page ", number(page));
    if (blocks[place(page)] != number(none<BlockId>)) broken(where(place(page)).what(), "two blocks have it");
    blocks[place(page)] = static_cast<std::int32_t>(block);
  }

  std::vector<bool> is_listed(num_pages);
  for (const PageId page : pool.free_) {
    if (is_listed[place(page)]) broken(where(place(page)).what(), "twice in the list of free pages");
    is_listed[place(page)] = true;
    if (pool.info(page).use != Use::free) broken(where(place(page)).what(), "listed as free, and in use");
  }
  std::int32_t num_idle = 0;
  for (PageId page = pool.idle_first_; page != none<PageId>; page = pool.next_idle(page)) {
    if (is_listed[place(page)]) broken(where(place(page)).what(), "twice in the lists");
    is_listed[place(page)] = true;
    if (pool.info(page).use != Use::idle) broken(where(place(page)).what(), "listed as idle, and is not");
    ++num_idle;
    // Whoever counts on an idle page must be able to evict it: what follows it in its chain must be idle too.
    if (group != full_group) continue;
    const BlockId block = pool.block_of(page);
    for (std::size_t child = 0; child < own.blocks_.size(); ++child) {
      const PageId after = own.page_of(group, BlockId{static_cast<std::int32_t>(child)});
      if (own.blocks_[child].parent != block || after == none<PageId>) continue;
      if (pool.info(after).use != Use::idle) broken(where(place(page)).what(), "idle, while a page after it is in use");
    }
  }
  std::int32_t num_held = 0;
  for (std::size_t page = 0; page < num_pages; ++page) {
    const PagePool::Info& info = pool.pages_[page];
    const auto at = [&] { return std::string(where(page).what()); };
    if (leases.writers[page] != (info.use == Use::writable ? 1 : 0)) broken(at(), leases.writers[page], " writers");
    if (leases.readers[page] != info.readers) broken(at(), leases.readers[page], " readers, counted as ", info.readers);
    if ((info.use == Use::read) != (info.readers > 0)) broken(at(), info.readers, " readers, and is not read");
    if ((info.use == Use::free || info.use == Use::idle) != is_listed[page])
      broken(at(), "lost: in no list, of no owner");
    if (number(info.block) != blocks[page]) broken(at(), "of block ", number(info.block), ", which has another page");
    if ((info.use == Use::free || info.use == Use::writable) && blocks[page] >= 0)
      broken(at(), "of a block, and not sealed");
    if (info.use == Use::idle && blocks[page] < 0) broken(at(), "idle, and of no block");
    if (info.use != Use::held) continue;
    ++num_held;
    if (info.until <= scheduler.clock_.retired) broken(at(), "held by a step that is over");
    const bool is_queued =
        std::any_of(pool.held_.begin() + static_cast<std::ptrdiff_t>(pool.held_first_), pool.held_.end(),
                    [&](const auto& held) { return place(held.page) == page && held.step >= info.until; });
    if (!is_queued) broken(at(), "held, and nothing lets it go");
  }
  if (num_idle != pool.num_idle_) broken(num_idle, " idle pages, counted as ", pool.num_idle_);
  if (num_held != pool.num_held_) broken(num_held, " held pages, counted as ", pool.num_held_);
}

void Audit::check_blocks(const PrefixCache& cache) {
  const std::size_t num_blocks = cache.blocks_.size();
  std::vector<std::int32_t> device_children(num_blocks);
  std::vector<std::int32_t> host_children(num_blocks);
  std::size_t num_used = 0;
  for (std::size_t at = 0; at < num_blocks; ++at) {
    const auto& block = cache.blocks_[at];
    if (block.parent == no_block) continue;
    ++num_used;
    const BlockId id{static_cast<std::int32_t>(at)};
    const bool on_device = cache.page_of(full_group, id) != none<PageId>;
    if (!on_device && !block.host && !block.is_storing) broken("block ", at, " is nowhere");
    for (std::int32_t group = 1; group < cache.layout().num_groups(); ++group) {
      if (!on_device && cache.page_of(CacheGroupId{group}, id) != none<PageId>)
        broken("block ", at, " has no full page");
    }
    if (cache.find(block.parent, block.salt, block.hash, cache.tokens_of(id)) != id)
      broken("block ", at, " is not found");
    if (block.parent == root_block) continue;
    const auto& parent = cache.block(block.parent);
    if (parent.parent == no_block) broken("block ", at, " has a parent that is not in use");
    if (on_device && cache.page_of(full_group, block.parent) == none<PageId>)
      broken("block ", at, " is on the device alone");
    if (block.host && !parent.host) broken("block ", at, " is on the host alone");
    device_children[place(block.parent)] += on_device;
    host_children[place(block.parent)] += block.host || block.is_storing;
  }
  for (std::size_t at = 0; at < num_blocks; ++at) {
    const auto& block = cache.blocks_[at];
    if (block.parent == no_block) continue;
    if (block.device_children != device_children[at])
      broken("block ", at, " has another number of children on the device");
    if (block.host_children != host_children[at]) broken("block ", at, " has another number of children on the host");
  }
  if (num_used + cache.free_.size() != num_blocks) broken("of ", num_blocks, " blocks ", num_used, " are in use");
}

void Audit::check_pins(const Scheduler& scheduler, RankGroupId ranks) {
  const PrefixCache& own = cache(scheduler, ranks);
  std::vector<std::int32_t> pins(own.blocks_.size());
  for (const auto& pending : scheduler.transfers_) {
    if (pending.transfer.ranks != ranks || pending.transfer.kind != Transfer::Kind::load) continue;
    for (const BlockId block : pending.transfer.blocks) ++pins[place(block)];
  }
  for (std::size_t at = 0; at < pins.size(); ++at) {
    if (own.blocks_[at].host_pins != pins[at])
      broken("block ", at, " is pinned for ", pins[at], " loads, counted as ", own.blocks_[at].host_pins);
  }
}

void Audit::check_requests(const Scheduler& scheduler) {
  std::vector<std::int32_t> slots(scheduler.slots_.free_.size());
  std::ranges::transform(scheduler.slots_.free_, slots.begin(), [](SlotId slot) { return number(slot); });
  std::map<const User*, std::pair<std::int32_t, std::int32_t>> users;
  std::int32_t num_queued = 0;
  for (const auto& [id, entry] : scheduler.live_) {
    ++users[entry->user].first;
    users[entry->user].second += entry->is_running();
    num_queued += entry->is_queued();
    const bool is_listed = std::ranges::find(scheduler.running_, entry.get()) != scheduler.running_.end();
    if (is_listed != entry->is_running()) broken("request ", number(id), " is in the wrong list");
    if (entry->is_queued()) continue;
    const Seat& seat = entry->seat();
    slots.push_back(number(seat.slot.slot()));
    if (entry->is<Finishing>() && seat.flights.empty())
      broken("request ", number(id), " finishes, and waits for nothing");
    if (entry->is<Loading>() && seat.flights.empty()) broken("request ", number(id), " loads nothing");
    if (seat.flights.num_steps() == 0 && !seat.pages.snapshots_.empty())
      broken("request ", number(id), " keeps a copy");
    if (entry->is_running() && seat.num_cached > entry->request().length()) broken("more is cached than there is");
  }
  if (num_queued != scheduler.num_waiting()) broken(num_queued, " requests wait, counted as ", scheduler.num_waiting());
  for (const auto& [id, user] : scheduler.users_) {
    if (users[user.get()] != std::pair(user->num_open, user->num_running))
      broken("user ", number(id), " is miscounted");
  }
  const bool is_sorted =
      std::ranges::is_sorted(scheduler.running_, [](const Entry* a, const Entry* b) { return a->precedes(*b); });
  if (!is_sorted) broken("the running requests are not in order");
  std::ranges::sort(slots);
  const std::int32_t num_slots = std::min(scheduler.limits_.max_sequences, scheduler.limits_.max_step_tokens);
  std::vector<std::int32_t> all(static_cast<std::size_t>(num_slots));
  std::iota(all.begin(), all.end(), 0);
  if (slots != all) broken("a slot is lost or has two owners");
}

}  // namespace tsrun
