// Attention over a paged cache: who computes what. Included inside an instruction set's namespace.
//
// The work of a call is a row of items, and each worker takes a stretch of it of about the same cost. Where a sequence
// has few rows an item is a span of keys: the keys are read from where they lie, once for all rows. Where it has many
// an item is a block of rows: a worker packs each span once for all of its blocks. Either way gives a row the same
// bits.

constexpr std::int64_t few_rows = 128;
// Of the results that a worker has under way at a time: so many more rows share the packing of a span.
constexpr std::int64_t chunk_elements = std::int64_t{1} << 18;

inline std::int64_t blocks_of(std::int64_t rows) { return (rows + block_rows - 1) / block_rows; }

// Where things lie in the scratch memory. It is bounded by the sizes of the operands, since it is laid out again only
// when those change; what lengths never reach is never touched.
template <class Element>
struct Places {
  std::int64_t blocks;  // of a chunk
  std::int64_t spans;   // that a row sees at most
  std::int64_t queries, totals, parts, scores, panels, keys, values,
      worker_bytes;           // a worker's, in bytes from its beginning
  std::int64_t shared_parts;  // bytes of the parts that a worker shares

  explicit Places(const Problem& problem) {
    const std::int64_t width = padded<Element>(problem.key_width), part_bytes = part_floats(problem) * sizeof(float);
    const std::int64_t rows = problem.tokens * problem.group, chunk = chunk_elements / part_width(problem);
    blocks = blocks_of(rows < few_rows ? rows : chunk < few_rows ? few_rows : rows < chunk ? rows : chunk);
    const std::int64_t few = blocks_of(rows < few_rows ? rows : few_rows);
    spans = (problem.tables.width() * problem.page_size + span_keys - 1) / span_keys;
    if (problem.window) {
      const std::int64_t within = (problem.window + few_rows) / span_keys + 2;
      if (within < spans) spans = within;
    }
    std::int64_t end = 0;
    const auto take = [&](std::int64_t bytes) {
      const std::int64_t begin = end;
      end += aligned(bytes);
      return begin;
    };
    queries = take(blocks * block_rows * width * sizeof(Packed<Element>));
    totals = take(blocks * part_bytes);
    parts = take(few * part_bytes);
    scores = take(few * block_rows * span_keys * sizeof(float));
    panels = take(panel_width * width * sizeof(Element));
    keys = take(span_keys * width * sizeof(Packed<Element>));
    values = take(span_keys * part_width(problem) * sizeof(Packed<Element>));
    worker_bytes = end;
    shared_parts = aligned(spans * few * part_bytes);
  }
};

// Element: of the cache; Outer: of queries and results.
template <class Element, class Outer>
class Attention {
 public:
  Attention(const Problem& problem, std::byte* scratch, const Worker& worker)
      : problem_(problem),
        worker_(worker),
        places_(problem),
        width_(padded<Element>(problem.key_width)),
        part_width_(part_width(problem)),
        shared_(scratch + worker.count * places_.worker_bytes),
        own_(scratch + worker.index * places_.worker_bytes) {
    for_sequences(problem_, [&](const Sequence& sequence) {
      total_cost_ += cost(sequence) * problem_.key_heads;
      any_few_ = any_few_ || has_few(sequence);
    });
  }

  void run() {
    clear_unclaimed();
    for_pairs([&](const Rows& rows, std::int64_t before) {
      if (!has_few(rows.sequence)) return many_rows(rows, before);
      const Owners owners = owners_of(rows, before);
      if (owners.begin < owners.end) spans_of(rows, owners);
    });
    // A pair that several workers share is put together when all of them are done.
    if (worker_.count == 1 || !any_few_) return;
    worker_.barrier();
    for_pairs([&](const Rows& rows, std::int64_t before) {
      if (!has_few(rows.sequence)) return;
      const Owners owners = owners_of(rows, before);
      if (owners.first != owners.last && owners.first <= worker_.index && worker_.index <= owners.last)
        put_together(rows, owners);
    });
  }

 private:
  // The workers that share the spans of a pair, and which of the spans are this one's.
  struct Owners {
    std::int64_t first, last, begin, end;
  };

  static constexpr std::int64_t reading_cost = 8;  // of a key, in products with a row
  static constexpr int ahead = span_keys;          // keys of the next span that may be asked for in one
  static constexpr float lookahead = 96;           // keys that are asked for before they are read
  static constexpr float scoring = 0.625f;         // of the time that a span takes

  bool has_few(const Sequence& sequence) const { return sequence.num_new * problem_.group <= few_rows; }
  std::int64_t span_cost(const Rows& rows, std::int64_t span) const {
    const Range keys = rows.seen(0, rows.count() - 1, span);
    return (keys.end - keys.begin) * (rows.count() + reading_cost);
  }
  std::int64_t block_cost(const Rows& rows, const Blocks& blocks, std::int64_t block) const {
    return (rows.past_newest(blocks.first(block + 1) - 1) - rows.oldest(blocks.first(block))) * blocks.size(block);
  }
  // Of a sequence and one K/V head.
  std::int64_t cost(const Sequence& sequence) const {
    const Rows rows{problem_, sequence, 0};
    if (has_few(sequence)) return (sequence.length - rows.oldest(0)) * (rows.count() + reading_cost);
    const Blocks blocks(rows.count());
    std::int64_t sum = 0;
    for (std::int64_t b = 0; b < blocks.count; ++b) sum += block_cost(rows, blocks, b);
    return sum;
  }
  // The worker in whose share the middle of an item lies.
  std::int64_t owner(std::int64_t before, std::int64_t cost) const {
    return (2 * before + cost) * worker_.count / (2 * total_cost_);
  }

  // Calls f(rows, cost before) for each sequence and K/V head of which this worker may own something.
  template <class Function>
  void for_pairs(const Function& f) const {
    std::int64_t before = 0;
    for_sequences(problem_, [&](const Sequence& sequence) {
      const std::int64_t pair_cost = cost(sequence);
      for (std::int64_t head = 0; head < problem_.key_heads; ++head, before += pair_cost)
        if (owner(before, 0) <= worker_.index && worker_.index <= owner(before + pair_cost, 0))
          f(Rows{problem_, sequence, head}, before);
    });
  }

  Owners owners_of(const Rows& rows, std::int64_t before) const {
    const std::int64_t first = rows.first_span(0), past = rows.past_span(rows.count() - 1);
    Owners owners{owner(before, span_cost(rows, first)), 0, past, first};
    for (std::int64_t span = first; span < past; ++span) {
      owners.last = owner(before, span_cost(rows, span));
      before += span_cost(rows, span);
      if (owners.last != worker_.index) continue;
      if (span < owners.begin) owners.begin = span;
      owners.end = span + 1;
    }
    return owners;
  }

  Packed<Element>* queries(std::int64_t block) const {
    return reinterpret_cast<Packed<Element>*>(own_ + places_.queries) + block * block_rows * width_;
  }
  Part part_at(std::byte* from, std::int64_t index) const {
    return {reinterpret_cast<float*>(from) + index * part_floats(problem_)};
  }
  Part total(std::int64_t block) const { return part_at(own_ + places_.totals, block); }
  // Only the first owner of a pair begins with it, so that its number is also that of a place for the pair's parts.
  Part shared_part(const Owners& owners, std::int64_t index) const {
    return part_at(shared_ + owners.first * places_.shared_parts, index);
  }

  // ---- few rows

  void spans_of(const Rows& rows, const Owners& owners) const {
    const Blocks blocks(rows.count());
    const bool shared = owners.first != owners.last;
    const std::int64_t first = rows.first_span(0);
    for (std::int64_t b = 0; b < blocks.count; ++b) {
      pack_queries<Element, Outer>(rows, blocks.first(b), blocks.size(b), queries(b));
      if (!shared) clear(total(b), blocks.size(b), part_width_);
    }
    int fetched = 0;
    for (std::int64_t span = owners.begin; span < owners.end; ++span) {
      const auto part = [&](std::int64_t b) {
        return shared ? shared_part(owners, (span - first) * blocks.count + b) : part_at(own_ + places_.parts, b);
      };
      one_span(rows, blocks, span, fetched, part);
      if (shared) continue;
      for (std::int64_t b = 0; b < blocks.count; ++b) fold(total(b), part(b), blocks.size(b));
    }
    if (shared) return;
    for (std::int64_t b = 0; b < blocks.count; ++b)
      finish<Outer>(rows, blocks.first(b), blocks.size(b), total(b), 0, part_width_ / lanes);
  }

  template <class PartOf>
  void one_span(const Rows& rows, const Blocks& blocks, std::int64_t span, int& fetched, const PartOf& part) const {
    using Weight = Packed<Element>;
    const Element* found[span_keys + ahead];
    const Range keys = rows.seen(0, rows.count() - 1, span), panels = whole_panels(keys);
    const int known = rows.find(span, keys, found, ahead);
    Scales scales;
    if constexpr (has_scales<Element>) rows.find_scales(span, keys, scales);
    auto* scores = reinterpret_cast<float*>(own_ + places_.scores);
    auto* panel = reinterpret_cast<Element*>(own_ + places_.panels);
    auto* wide = reinterpret_cast<Weight*>(own_ + places_.keys);
    const auto scores_of = [&](std::int64_t b) { return scores + blocks.first(b) * span_keys; };
    Ahead<Element> next(problem_, found, known, fetched);
    const auto some_panels = [&]<int count>(int key) {
      score_rows<count>(queries(0), found + key, problem_.key_width, blocks.size(0), scores + key,
                        [&](float share) { next.to(lookahead + scoring * (key + share * count * panel_width)); });
    };
    int key = panels.begin;
    if (blocks.count == 1) {
      if (2 * blocks.size(0) <= block_rows)
        for (; key + 2 * panel_width <= panels.end; key += 2 * panel_width) some_panels.template operator()<2>(key);
      for (; key < panels.end; key += panel_width) some_panels.template operator()<1>(key);
    }
    for (; key < panels.end; key += panel_width) {
      next.to(lookahead + scoring * key);
      if (blocks.count < fewest_blocks) {
        pack_keys(found + key, problem_.key_width, panel);
        for (std::int64_t b = 0; b < blocks.count; ++b)
          score(queries(b), panel, width_, blocks.size(b), scores_of(b) + key);
      } else {
        pack_keys(found + key, problem_.key_width, panel, wide);
        for (std::int64_t b = 0; b < blocks.count; ++b)
          score(queries(b), wide, width_, blocks.size(b), scores_of(b) + key);
      }
    }
    for (std::int64_t b = 0; b < blocks.count; ++b) {
      weigh_block(rows, blocks.first(b), blocks.size(b), span, panels, scores_of(b), scales, part(b));
      weigh_rows(reinterpret_cast<const Weight*>(scores_of(b)), keys, blocks.size(b), found, problem_.value_offset,
                 problem_.value_width, part_width_, part(b).values(),
                 [&](float share) { next.to(lookahead + span_keys * (scoring + (1 - scoring) * share)); });
    }
    fetched = next.key() < span_keys ? 0 : next.key() - span_keys;
  }

  void weigh_block(const Rows& rows, std::int64_t first, int size, std::int64_t span, Range panels, float* scores,
                   const Scales& scales, const Part& part) const {
    for (int r = 0; r < size; ++r)
      weigh<Element>(problem_, scores + r * span_keys, scales, panels, rows.seen(first + r, first + r, span),
                     part.largest() + r, part.sums() + r);
    for (int r = size; r < lanes; ++r) part.largest()[r] = part.sums()[r] = 0;
  }

  void fold(const Part& total, const Part& part, int size) const {
    fold_values(fold_sums(total, part), total, part, size, part_width_, 0, part_width_ / lanes);
  }

  // Each of a pair's owners puts together some of its columns.
  void put_together(const Rows& rows, const Owners& owners) const {
    const Blocks blocks(rows.count());
    const Worker among{static_cast<int>(worker_.index - owners.first), static_cast<int>(owners.last - owners.first + 1),
                       nullptr};
    const std::int64_t begin = among.first(part_width_ / lanes), end = among.last(part_width_ / lanes);
    const std::int64_t spans = rows.past_span(rows.count() - 1) - rows.first_span(0);
    for (std::int64_t b = 0; b < blocks.count; ++b) {
      clear(total(b), blocks.size(b), part_width_);
      for (std::int64_t span = 0; span < spans; ++span) {
        const Part part = shared_part(owners, span * blocks.count + b);
        fold_values(fold_sums(total(b), part), total(b), part, blocks.size(b), part_width_, begin, end);
      }
      finish<Outer>(rows, blocks.first(b), blocks.size(b), total(b), begin, end);
    }
  }

  // ---- many rows

  void many_rows(const Rows& rows, std::int64_t before) const {
    const Blocks blocks(rows.count());
    std::int64_t begin = blocks.count, end = 0;
    for (std::int64_t b = 0; b < blocks.count; ++b) {
      const std::int64_t cost = block_cost(rows, blocks, b);
      if (owner(before, cost) == worker_.index) {
        if (b < begin) begin = b;
        end = b + 1;
      }
      before += cost;
    }
    for (; begin < end; begin += places_.blocks)
      chunk(rows, blocks, begin, begin + places_.blocks < end ? begin + places_.blocks : end);
  }

  void chunk(const Rows& rows, const Blocks& blocks, std::int64_t begin, std::int64_t end) const {
    using Weight = Packed<Element>;
    const Element* found[span_keys];
    Scales scales;
    auto* scores = reinterpret_cast<float*>(own_ + places_.scores);
    auto* panel = reinterpret_cast<Element*>(own_ + places_.panels);
    auto* wide_keys = reinterpret_cast<Weight*>(own_ + places_.keys);
    auto* wide_values = reinterpret_cast<Weight*>(own_ + places_.values);
    const Part part = part_at(own_ + places_.parts, 0);
    for (std::int64_t b = begin; b < end; ++b) {
      pack_queries<Element, Outer>(rows, blocks.first(b), blocks.size(b), queries(b - begin));
      clear(total(b - begin), blocks.size(b), part_width_);
    }
    const std::int64_t first_row = blocks.first(begin), last_row = blocks.first(end) - 1;
    for (std::int64_t span = rows.first_span(first_row); span < rows.past_span(last_row); ++span) {
      const Range all = rows.seen(first_row, last_row, span), all_panels = whole_panels(all);
      rows.find(span, all, found, 0);
      if constexpr (has_scales<Element>) rows.find_scales(span, all, scales);
      for (int key = all_panels.begin; key < all_panels.end; key += panel_width)
        pack_keys(found + key, problem_.key_width, panel, wide_keys + key * width_);
      pack_values(found, problem_.value_offset, all, problem_.value_width, span_keys * panel_width, wide_values);
      for (std::int64_t b = begin; b < end; ++b) {
        const std::int64_t first = blocks.first(b);
        const int size = blocks.size(b);
        const Range keys = rows.seen(first, first + size - 1, span), panels = whole_panels(keys);
        if (keys.empty()) continue;
        for (int key = panels.begin; key < panels.end; key += panel_width)
          score(queries(b - begin), wide_keys + key * width_, width_, size, scores + key);
        weigh_block(rows, first, size, span, panels, scores, scales, part);
        weigh_panels(reinterpret_cast<const Weight*>(scores), keys, size, wide_values, span_keys * panel_width,
                     part_width_, part.values());
        fold(total(b - begin), part, size);
      }
    }
    for (std::int64_t b = begin; b < end; ++b)
      finish<Outer>(rows, blocks.first(b), blocks.size(b), total(b - begin), 0, part_width_ / lanes);
  }

  // Zeros in the rows of no sequence: those that pad a step.
  void clear_unclaimed() const {
    std::int64_t claimed = 0, end = 0;
    for_sequences(problem_, [&](const Sequence& sequence) {
      claimed += sequence.num_new;
      if (end < sequence.first + sequence.num_new) end = sequence.first + sequence.num_new;
    });
    if (claimed == problem_.tokens) return;
    for (std::int64_t t = worker_.first(problem_.tokens); t < worker_.last(problem_.tokens); ++t) {
      bool found = t < end && claimed == end;
      if (t < end && claimed < end)
        for_sequences(problem_, [&](const Sequence& s) { found = found || (s.first <= t && t < s.first + s.num_new); });
      if (found) continue;
      for (std::int64_t head = 0; head < problem_.key_heads; ++head)
        for (std::int64_t g = 0; g < problem_.group; ++g)
          std::memset(problem_.out.at<Outer>(t, head, g), 0, problem_.value_width * sizeof(Outer));
    }
  }

  const Problem& problem_;
  const Worker& worker_;
  const Places<Element> places_;
  const std::int64_t width_, part_width_;
  std::byte *const shared_, *const own_;
  std::int64_t total_cost_ = 0;
  bool any_few_ = false;
};

template <class Element>
void attend_to(const Problem& problem, const Call& call, const Worker& worker) {
  if (problem.tokens == 0) return;
  if (call.out.dtype == DType::bf16) return Attention<Element, bf16>(problem, call.scratch, worker).run();
  Attention<Element, float>(problem, call.scratch, worker).run();
}
// A cache of f32 or bf16 has the type of queries and results.
inline void attend(const Problem& problem, const Tensor& cache, const Call& call, const Worker& worker) {
  if (cache.dtype == DType::f8e4m3) return attend_to<e4m3>(problem, call, worker);
  if (problem.tokens == 0) return;
  if (cache.dtype == DType::bf16) return Attention<bf16, bf16>(problem, call.scratch, worker).run();
  Attention<float, float>(problem, call.scratch, worker).run();
}

template <class Element>
std::int64_t places_bytes(const Problem& problem, int num_workers) {
  const Places<Element> places(problem);
  return num_workers * (places.worker_bytes + places.shared_parts);
}
inline std::int64_t attend_scratch(const Problem& problem, const Tensor& cache, int num_workers) {
  return cache.dtype == DType::f8e4m3 ? places_bytes<e4m3>(problem, num_workers)
         : cache.dtype == DType::bf16 ? places_bytes<bf16>(problem, num_workers)
                                      : places_bytes<float>(problem, num_workers);
}

// (q [T, K, G, E], cache, sinks [K, G]?, spans, lengths, tables; shard, scale, window, softcap): all but where things
// lie in the cache
template <bool has_sinks>
Problem cached_heads(const Call& call) {
  const Tensor &q = call.operands[0], &cache = call.operands[1], &out = call.out;
  Problem problem;
  problem.q = {q.data, q.strides[0], q.strides[1], q.strides[2], q.width()};
  problem.out = {out.data, out.strides[0], out.strides[1], out.strides[2], out.width()};
  problem.tokens = q.sizes[0], problem.key_heads = q.sizes[1], problem.group = q.sizes[2];
  problem.key_width = problem.value_width = q.width();
  problem.cache = cache.data;
  problem.page_size = cache.sizes[1], problem.page_stride = cache.strides[0];
  const Tensor* step = call.operands + (has_sinks ? 3 : 2);
  problem.spans = step[0], problem.lengths = step[1], problem.tables = step[2];
  if constexpr (has_sinks) problem.sinks = call.operands[2];
  problem.shard = static_cast<std::int64_t>(call.numbers[0]), problem.scale = static_cast<float>(call.numbers[1]);
  problem.window = static_cast<std::int64_t>(call.numbers[2]), problem.softcap = static_cast<float>(call.numbers[3]);
  return problem;
}

// The cache is [pages, page_size, 2, K, E].
template <bool has_sinks>
Problem attention_problem(const Call& call) {
  const Tensor& cache = call.operands[1];
  Problem problem = cached_heads<has_sinks>(call);
  problem.row_stride = cache.strides[1], problem.value_offset = cache.strides[2];
  problem.head_stride = cache.strides[3], problem.scales_offset = 0;
  return problem;
}
template <bool has_sinks>
void attention(const Call& call, const Worker& worker) {
  attend(attention_problem<has_sinks>(call), call.operands[1], call, worker);
}
template <bool has_sinks>
std::int64_t attention_scratch(const Call& call, int num_workers) {
  return attend_scratch(attention_problem<has_sinks>(call), call.operands[1], num_workers);
}

// The cache is u8[pages, page_size, 2 * K * (E + 4)], as int8_cache.hpp says.
template <bool has_sinks>
Problem attention_int8_problem(const Call& call) {
  Problem problem = cached_heads<has_sinks>(call);
  problem.head_stride = problem.key_width, problem.value_offset = problem.key_heads * problem.key_width;
  problem.row_stride = 2 * problem.value_offset, problem.scales_offset = problem.page_size * problem.row_stride;
  return problem;
}
template <bool has_sinks>
void attention_int8(const Call& call, const Worker& worker) {
  attend_to<Code>(attention_int8_problem<has_sinks>(call), call, worker);
}
template <bool has_sinks>
std::int64_t attention_int8_scratch(const Call& call, int num_workers) {
  return places_bytes<Code>(attention_int8_problem<has_sinks>(call), num_workers);
}
