#include "prefix_cache.hpp"

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "check.hpp"
#include "surroundings.hpp"

namespace tsrun {

using Tokens = std::vector<Token>;

static constexpr std::int32_t size = 2;

static CacheLayout layout(std::int32_t num_pages) { return {size, {{CacheKind::full, num_pages}}}; }

// Seals the pages of a text whose hashes the test chooses, and gives them back.
static BlockId remember(PrefixCache& cache, const std::vector<std::uint64_t>& hashes, const Tokens& tokens,
                        std::uint64_t salt = 0) {
  CachedPages pages(&cache.pool(full_group));
  BlockId block = root_block;
  for (std::size_t at = 0; at < hashes.size(); ++at) {
    block = cache.find_or_add(block, salt, hashes[at], std::span(tokens).subspan(at * size, size));
    pages.add(cache.seal(full_group, *cache.take(full_group), block));
  }
  pages.give_back(tests::landed());
  return block;
}

static std::int32_t found(const PrefixCache& cache, const std::vector<std::uint64_t>& hashes, const Tokens& tokens,
                          std::uint64_t salt = 0) {
  Match match;
  cache.match(hashes, tokens, salt, match);
  return match.device;
}

TEST("a text whose hash another one has is never given the other's pages") {
  const StepClock clock;
  PrefixCache cache(layout(8), RankGroupId{0}, 0, &clock);
  remember(cache, {5, 6}, {1, 2, 3, 4});
  CHECK(found(cache, {5, 6}, {1, 2, 3, 4}) == 2);
  CHECK(found(cache, {5, 6}, {1, 2, 3, 9}) == 1);
  CHECK(found(cache, {5, 6}, {9, 2, 3, 4}) == 0);
  CHECK(found(cache, {5, 6}, {1, 2, 3, 4}, 1) == 0);  // nor one of another salt
}

TEST("texts with one hash are both remembered") {
  const StepClock clock;
  PrefixCache cache(layout(8), RankGroupId{0}, 0, &clock);
  remember(cache, {5, 6}, {1, 2, 3, 4});
  remember(cache, {5, 6}, {9, 2, 3, 4});
  CHECK(found(cache, {5, 6}, {1, 2, 3, 4}) == 2 && found(cache, {5, 6}, {9, 2, 3, 4}) == 2);
  CHECK(cache.num_cached() == 4);
}

TEST("blocks that leave close the gap in the index") {
  const StepClock clock;
  PrefixCache cache(layout(4), RankGroupId{0}, 0, &clock);
  // Four texts of one hash lie one behind the other; the first is evicted, and the others are still found.
  for (Token first = 0; first < 4; ++first) remember(cache, {3}, {first, 0});
  const std::optional<WritablePage> taken = cache.take(full_group);
  CHECK(found(cache, {3}, {0, 0}) == 0);
  for (Token first = 1; first < 4; ++first) CHECK(found(cache, {3}, {first, 0}) == 1);
}

TEST("a page of a block that has one is given back, and the block's is shared") {
  const StepClock clock;
  PrefixCache cache(layout(2), RankGroupId{0}, 0, &clock);
  const Tokens tokens{1, 2};
  const BlockId block = cache.find_or_add(root_block, 0, 5, tokens);
  const CachedPage first = cache.seal(full_group, *cache.take(full_group), block);
  CHECK(cache.find_or_add(root_block, 0, 5, tokens) == block);
  const CachedPage second = cache.seal(full_group, *cache.take(full_group), block);
  CHECK(first.page() == second.page() && cache.pool(full_group).num_readers(first.page()) == 2);
  CHECK(cache.pool(full_group).num_available() == 1);
}

TEST("a copy on the host outlives the page, and is given up from the end of the text") {
  const StepClock clock;
  PrefixCache cache(layout(2), RankGroupId{0}, 3, &clock);
  const BlockId last = remember(cache, {5, 6}, {1, 2, 3, 4});
  std::optional<Transfer> store = cache.begin_store(last, TransferId{0});
  CHECK(store && store->pairs.size() == 2);
  CHECK(cache.pool(full_group).num_available() == 0);  // nobody evicts what is being read
  CHECK(!cache.begin_store(last, TransferId{1}));
  cache.end_store(std::move(*store), true);
  const BlockId other = remember(cache, {7, 8}, {5, 6, 7, 8});  // evicts both pages
  Match match;
  cache.match(std::vector<std::uint64_t>{5, 6}, Tokens{1, 2, 3, 4}, 0, match);
  CHECK(match.device == 0 && match.host == 2);
  store = cache.begin_store(other, TransferId{2});  // one host page is free, the second is taken from the end
  CHECK(store && store->pairs.size() == 2);
  cache.end_store(std::move(*store), false);
  cache.match(std::vector<std::uint64_t>{5, 6}, Tokens{1, 2, 3, 4}, 0, match);
  CHECK(match.host == 1);
}

TEST("a prefix is found where a window's pages and a state's copy are, too") {
  const StepClock clock;
  PrefixCache cache({size, {{CacheKind::full, 8}, {CacheKind::window, 8, 3}, {CacheKind::state, 2, 4}}}, RankGroupId{0},
                    0, &clock);
  const Tokens tokens{1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<std::uint64_t> hashes{10, 11, 12, 13};
  const CacheGroupId window{1};
  const CacheGroupId state{2};
  std::vector<CachedPage> held;
  BlockId block = root_block;
  for (std::size_t at = 0; at < 4; ++at) {
    block = cache.find_or_add(block, 0, hashes[at], std::span(tokens).subspan(at * size, size));
    held.push_back(cache.seal(full_group, *cache.take(full_group), block));
    if (at < 2) held.push_back(cache.seal(window, *cache.take(window), block));
    if (at == 1) held.push_back(cache.seal(state, *cache.take(state), block));
  }
  // The window reads 3 tokens: after 4 tokens pages 1 on, which are there; after 6 page 2, which is not.
  CHECK(found(cache, hashes, tokens) == 2);
  CHECK(found(cache, {10}, tokens) == 0);  // no state was copied after 2 tokens
}

}  // namespace tsrun
