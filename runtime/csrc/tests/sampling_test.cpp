#include "sampling.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "check.hpp"
#include "philox.hpp"

namespace tsrun {

namespace {

// Without a library's random numbers, which differ between libraries: from -range to range.
std::vector<float> logits_of(std::size_t width, std::uint64_t seed, float range) {
  std::vector<float> logits(width);
  for (std::size_t i = 0; i < width; ++i)
    logits[i] = (static_cast<float>(philox({i, 0, 0, 0}, seed)[0] >> 40) * 0x1p-23f - 1) * range;
  return logits;
}

Logits row_of(const std::vector<float>& logits) {
  return {logits.data(), LogitType::f32, static_cast<std::int64_t>(logits.size())};
}

std::int32_t token(const std::vector<float>& logits, Sampler sampler, std::uint64_t position) {
  Ranking room;
  return choose(row_of(logits), sampler, position, room).token;
}

// What a sampler may choose, by sorting.
std::vector<std::int32_t> kept_by(const std::vector<float>& logits, const Sampler& sampler) {
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::ranges::stable_sort(ids, [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
  const auto weight = [&](std::int32_t id) { return std::exp((logits[id] - logits[ids[0]]) / sampler.temperature); };
  if (sampler.top_k > 0 && sampler.top_k < std::ssize(ids)) ids.resize(sampler.top_k);
  double total = 0, mass = 0;
  for (const std::int32_t id : ids) total += weight(id);
  std::size_t count = 0;
  while (count < ids.size() && mass < sampler.top_p * total) mass += weight(ids[count++]);
  ids.resize(count);
  std::erase_if(ids, [&](std::int32_t id) { return weight(id) < sampler.min_p; });
  return ids;
}

const std::array samplers{Sampler{0},
                          Sampler{1},
                          Sampler{1, 9},
                          Sampler{1, 700},
                          Sampler{1, 0, 0.9},
                          Sampler{2, 0, 1, 0.03},
                          Sampler{3, 400, 0.7, 0.01}};

}  // namespace

TEST("a token is one of those that the filters keep, and each of few comes") {
  for (const std::size_t width : {1, 5, 127, 128, 129, 1000, 20000})
    for (const Sampler& sampler : samplers) {
      const std::vector<float> logits = logits_of(width, width, 6);
      std::vector<std::int32_t> kept = sampler.is_greedy() ? kept_by(logits, {1, 1}) : kept_by(logits, sampler);
      std::vector<bool> seen(width);
      for (std::uint64_t position = 0; position < 100; ++position) {
        const std::int32_t chosen = token(logits, sampler, position);
        CHECK(std::ranges::find(kept, chosen) != kept.end());
        seen[chosen] = true;
      }
      if (kept.size() == 1) CHECK(seen[kept[0]]);
    }
}

TEST("exactly as many are kept as top_k says, also among equals") {
  std::vector<float> logits = logits_of(1000, 1, 4);
  for (float& logit : logits) logit = std::round(logit);
  for (const std::int64_t count : {1, 2, 3, 60, 130}) {
    const Sampler sampler{1e6, count};  // all about equally likely
    std::vector<std::int32_t> kept = kept_by(logits, sampler), chosen;
    for (std::uint64_t position = 0; position < 20 * static_cast<std::uint64_t>(count); ++position)
      chosen.push_back(token(logits, sampler, position));
    std::ranges::sort(chosen);
    chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
    std::ranges::sort(kept);
    CHECK(chosen == kept);
  }
}

TEST("a row has its token whatever the room was used for before") {
  Ranking room;
  for (const std::size_t width : {3000, 7, 129, 20000, 1})
    for (Sampler sampler : samplers) {
      const std::vector<float> logits = logits_of(width, 3, 8);
      CHECK(choose(row_of(logits), sampler, 5, room).token == token(logits, sampler, 5));
    }
}

TEST("what is not a number gives no token") {
  for (const float bad : {NAN, -NAN, INFINITY})
    for (const std::size_t place : {0, 130, 299}) {
      std::vector<float> logits(300);
      logits[place] = bad;
      for (const Sampler& sampler : samplers) CHECK(token(logits, sampler, 0) == -1);
    }
  CHECK(token(std::vector<float>(300, -INFINITY), samplers[1], 0) == -1);
}

TEST("a row with edits is as if they stood in it") {
  for (const std::size_t width : {1, 127, 129, 1000}) {
    std::vector<float> logits = logits_of(width, 2, 5);
    const std::vector<std::int32_t> prompt{0, 0, static_cast<std::int32_t>(width / 2)};
    for (Sampler sampler : samplers) {
      Ranking room;
      sampler.adjustment.emplace(
          Penalties{1.5, 0.5, 0.25},
          std::vector<std::pair<std::int32_t, double>>{{static_cast<std::int32_t>(width - 1), 2}}, prompt);
      std::vector<int> counts(width);
      for (std::uint64_t position = 3; position < 40; ++position) {
        std::vector<float> edited = logits;
        for (std::size_t id = 0; id < width; ++id) {
          double logit = logits[id];
          if (counts[id] > 0 || id == 0 || id == width / 2) logit = logit > 0 ? logit / 1.5 : logit * 1.5;
          edited[id] =
              static_cast<float>(logit - 0.5 * counts[id] - (counts[id] > 0 ? 0.25 : 0) + (id + 1 == width ? 2 : 0));
        }
        Sampler plain = sampler;
        plain.adjustment.reset();
        const std::int32_t chosen = choose(row_of(logits), sampler, position, room).token;
        CHECK(chosen == token(edited, plain, position));
        ++counts[chosen];
      }
    }
  }
}

TEST("only what is allowed is chosen, and where nothing is, nothing") {
  for (const std::size_t width : {1, 31, 128, 129, 1000}) {
    const std::vector<float> logits = logits_of(width, 4, 5);
    std::vector<std::uint32_t> allowed(words_of(static_cast<std::int64_t>(width)));
    for (Sampler sampler : samplers) {
      sampler.allowed = allowed;
      std::ranges::fill(allowed, 0);
      CHECK(token(logits, sampler, 0) == none_allowed);
      std::vector<float> masked(width, -INFINITY);
      for (std::size_t id = width / 2; id < width; id += 3) {
        allowed[id / word_bits] |= 1u << (id % word_bits);
        masked[id] = logits[id];
      }
      Sampler plain = sampler;
      plain.allowed = {};
      for (std::uint64_t position = 0; position < 30; ++position)
        CHECK(token(logits, sampler, position) == token(masked, plain, position));
      std::ranges::fill(allowed, ~0u);
      CHECK(token(logits, sampler, 1) == token(logits, plain, 1));
    }
  }
}

TEST("log probabilities are those of the softmax, and of equals the first comes first") {
  Ranking room;
  for (const std::size_t width : {1, 127, 129, 5000}) {
    std::vector<float> logits = logits_of(width, 6, 7);
    for (float& logit : logits) logit = std::round(logit * 2) / 2;
    double total = 0;
    for (const float logit : logits) total += std::exp(double{logit});
    std::vector<std::int32_t> ids(width);
    std::iota(ids.begin(), ids.end(), 0);
    std::ranges::stable_sort(ids, [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
    const LogProbabilities found = log_probabilities(row_of(logits), static_cast<std::int32_t>(width / 3), 20, room);
    CHECK(std::abs(found.of_token - (logits[width / 3] - std::log(total))) < 1e-5);
    CHECK(found.top.size() == std::min<std::size_t>(width, 20));
    for (std::size_t i = 0; i < found.top.size(); ++i) {
      CHECK(found.top[i].id == ids[i]);
      CHECK(std::abs(found.top[i].logit - (logits[ids[i]] - std::log(total))) < 1e-5);
    }
  }
}

// As computed where vectors have 16 elements, 8 or 4: instruction sets do not differ.
TEST("tokens are the same on every machine") {
  std::uint64_t digest = 0;
  for (const float range : {2, 9, 30}) {
    const std::vector<float> logits = logits_of(50000, 11, range);
    for (const Sampler& sampler : samplers)
      for (std::uint64_t position = 0; position < 10; ++position)
        digest = philox({digest, static_cast<std::uint64_t>(token(logits, sampler, position)), 0, 0}, 0)[0];
  }
  CHECK(digest == 7949110754597217035u);
}

}  // namespace tsrun
