// What blocks of query rows make of one span of keys, and how spans add up. Included inside an instruction set's
// namespace.
//
// The rows of a sequence and K/V head are its new tokens times the query heads. A row's result has the same bits in any
// company: within a span its scores add up over the elements in order, its weights are taken against the span's own
// maximum, and its values add up over the keys in order; spans are folded from the oldest to the newest. What a row
// does not see adds exact zeros.

// Rows of queries or of results, in elements from `data`.
struct HeadRows {
  std::byte* data = nullptr;
  std::int64_t token_stride = 0, key_head_stride = 0, head_stride = 0, width = 0;

  template <class Element>
  Element* at(std::int64_t token, std::int64_t key_head, std::int64_t head) const {
    return reinterpret_cast<Element*>(data) + token * token_stride + key_head * key_head_stride + head * head_stride;
  }
};

// A call of any of the ops. Values lie `value_offset` elements after their keys; in a cache of codes the scales of a
// page begin `scales_offset` bytes after it.
struct Problem {
  HeadRows q, rotated, out;  // a query is q and then rotated
  std::int64_t tokens, key_heads, group, key_width, value_width;
  std::byte* cache;
  std::int64_t page_size, page_stride, row_stride, head_stride, value_offset, scales_offset;
  Tensor sinks = {};  // [key heads, group] where there are any
  Tensor spans, lengths, tables;
  std::int64_t shard, window;
  float scale, softcap;
};

// A sequence's new tokens, from row `first` of the step's share on; `number` is its row of the tables.
struct Sequence {
  std::int64_t number, first, num_new, length;
};

// Calls f(sequence) for those with rows here.
template <class Function>
void for_sequences(const Problem& problem, const Function& f) {
  const std::int64_t begin = problem.shard * problem.tokens, end = begin + problem.tokens;
  for (std::int64_t s = 0; s < problem.spans.rows(); ++s) {
    const auto* span = problem.spans.at<const std::int32_t>(s);
    const std::int64_t first = span[0] < begin ? begin : span[0], last = span[1] < end ? span[1] : end;
    if (first < last) f(Sequence{s, first - begin, last - first, *problem.lengths.at<const std::int32_t>(s)});
  }
}

// What the codes of a span's keys and values are to be multiplied by.
struct Scales {
  alignas(64) float keys[span_keys], values[span_keys];
};
template <class Element>
constexpr bool has_scales = false;
template <>
constexpr bool has_scales<Code> = true;

// The rows of one sequence and K/V head, and what they see.
struct Rows {
  const Problem& problem;
  Sequence sequence;
  std::int64_t key_head;

  std::int64_t count() const { return sequence.num_new * problem.group; }
  std::int64_t past_newest(std::int64_t row) const {
    return sequence.length - sequence.num_new + row / problem.group + 1;
  }
  std::int64_t oldest(std::int64_t row) const {
    const std::int64_t begin = past_newest(row) - problem.window;
    return problem.window && begin > 0 ? begin : 0;
  }
  std::int64_t first_span(std::int64_t row) const { return oldest(row) / span_keys; }
  std::int64_t past_span(std::int64_t row) const { return (past_newest(row) + span_keys - 1) / span_keys; }
  // What rows `first` to `last` see of a span between them.
  Range seen(std::int64_t first, std::int64_t last, std::int64_t span) const {
    const std::int64_t begin = oldest(first) - span * span_keys, end = past_newest(last) - span * span_keys;
    return {static_cast<int>(begin < 0           ? 0
                             : begin < span_keys ? begin
                                                 : span_keys),
            static_cast<int>(end < 0           ? 0
                             : end < span_keys ? end
                                               : span_keys)};
  }

  // Where these keys of a span lie. The others of their panels are given places of keys among them: what lies in their
  // own may be anything, and pages that no row sees are not even named by the table. After a whole span the next
  // `ahead` keys are found too, as far as there are any; gives how many are known in all.
  template <class Element>
  int find(std::int64_t span, Range keys, const Element** rows, int ahead) const {
    const auto* table = problem.tables.at<const std::int32_t>(sequence.number);
    const auto* head = reinterpret_cast<const Element*>(problem.cache) + key_head * problem.head_stride;
    const std::int64_t left = sequence.length - span * span_keys;
    const int known =
        keys.end < span_keys ? keys.end : static_cast<int>(left < span_keys + ahead ? left : span_keys + ahead);
    std::int64_t page = (span * span_keys + keys.begin) / problem.page_size;
    std::int64_t within = (span * span_keys + keys.begin) % problem.page_size;
    for (int key = keys.begin; key < known; ++page, within = 0) {
      const Element* from = head + table[page] * problem.page_stride + within * problem.row_stride;
      for (; key < known && within < problem.page_size; ++key, ++within, from += problem.row_stride) rows[key] = from;
    }
    const Range panels = whole_panels(keys);
    for (int key = panels.begin; key < keys.begin; ++key) rows[key] = rows[keys.begin];
    for (int key = keys.end; key < panels.end; ++key) rows[key] = rows[keys.end - 1];
    return known;
  }

  // Zeros for the others of their panels.
  void find_scales(std::int64_t span, Range keys, Scales& scales) const {
    const auto* table = problem.tables.at<const std::int32_t>(sequence.number);
    const std::int64_t first = span * span_keys + keys.begin;
    std::int64_t page = first / problem.page_size, within = first % problem.page_size;
    for (int key = keys.begin; key < keys.end; ++page, within = 0) {
      const auto* from =
          reinterpret_cast<const float*>(problem.cache + table[page] * problem.page_stride + problem.scales_offset) +
          key_head * problem.page_size + within;
      const std::int64_t left = problem.page_size - within, wanted = keys.end - key;
      const std::int64_t count = left < wanted ? left : wanted;
      std::memcpy(scales.keys + key, from, count * sizeof(float));
      std::memcpy(scales.values + key, from + problem.key_heads * problem.page_size, count * sizeof(float));
      key += static_cast<int>(count);
    }
    const Range panels = whole_panels(keys);
    for (int key = panels.begin; key < keys.begin; ++key) scales.keys[key] = scales.values[key] = 0;
    for (int key = keys.end; key < panels.end; ++key) scales.keys[key] = scales.values[key] = 0;
  }
};

// Rows first to first + size of a block in the order in which products read them.
template <class Element, class Outer>
void pack_queries(const Rows& rows, std::int64_t first, int size, Packed<Element>* packed) {
  const Problem& problem = rows.problem;
  const auto put = [&](const HeadRows& from, std::int64_t offset) {
    for (int r = 0; r < size; ++r) {
      const std::int64_t token = rows.sequence.first + (first + r) / problem.group;
      const auto* row = from.at<const Outer>(token, rows.key_head, (first + r) % problem.group);
      for (std::int64_t e = 0; e < from.width; ++e)
        assign(widen(row[e]), packed + Packing<Element>::index(offset + e, r, size));
    }
  };
  put(problem.q, 0);
  put(problem.rotated, problem.q.width);
  for (std::int64_t e = problem.key_width; e < padded<Element>(problem.key_width); ++e)
    for (int r = 0; r < size; ++r) assign(0.0f, packed + Packing<Element>::index(e, r, size));
}

// scores[row][key] of a panel.
template <class Query, class Key>
void score(const Query* queries, const Key* panel, std::int64_t width, int size, float* scores) {
  for_rows(size, [&]<int rows>() {
    Sums<rows, 1> sums = {};
    add_product(queries, panel, 0, width, sums);
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < panel_vectors; ++j) store(scores + r * span_keys + j * lanes, sums.at[r][j]);
  });
}

// Asks for the lines of keys and their values in the order in which they lie, while others are computed on. What a
// processor guesses by itself is less, since tiles jump between keys.
template <class Element>
class Ahead {
 public:
  Ahead(const Problem& problem, const Element* const* found, int known, int key)
      : found_(found),
        known_(known),
        key_(key),
        key_lines_(lines(problem.key_width)),
        lines_(key_lines_ + (problem.value_offset ? lines(problem.value_width) : 0)),
        value_offset_(problem.value_offset) {}

  // As far as this many keys from the beginning of the span.
  void to(float keys) {
    const auto goal = static_cast<std::int64_t>(keys * static_cast<float>(lines_));
    while (key_ * lines_ + line_ < goal && key_ < known_) {
      const bool value = line_ >= key_lines_;
      const auto* from = reinterpret_cast<const std::byte*>(found_[key_] + (value ? value_offset_ : 0));
      __builtin_prefetch(from + (value ? line_ - key_lines_ : line_) * 64);
      if (++line_ < lines_) continue;
      line_ = 0;
      ++key_;
    }
  }
  int key() const { return key_; }

 private:
  static std::int64_t lines(std::int64_t width) {
    return (width * static_cast<std::int64_t>(sizeof(Element)) + 63) / 64;
  }

  const Element* const* found_;
  int known_, key_;
  std::int64_t line_ = 0, key_lines_, lines_, value_offset_;
};

// The same from where keys lie, for one block: what is packed of them stays in the nearest cache. Calls
// between(share of the work that is done) all along.
template <int panels, class Query, class Element, class Between>
void score_rows(const Query* queries, const Element* const* keys, std::int64_t width, int size, float* scores,
                const Between& between) {
  constexpr int step = tile_elements<Element>, part = step / 4;
  alignas(64) Element tiles[panels * step * panel_width];
  for_rows(size, [&]<int rows>() {
    if constexpr (rows * panels <= block_rows) {
      Sums<rows, panels> sums = {};
      for (std::int64_t e = 0; e < width; e += step) {
        const auto done = [&](int eighths) {
          between((static_cast<float>(e) + eighths * step / 8) / static_cast<float>(width));
        };
        for (int p = 0; p < panels; ++p) {
          done(4 * p / panels);
          pack_tile(keys + p * panel_width, e, width, tiles + p * step * panel_width);
        }
        for (int i = 0; i < 4 && e + i * part < width; ++i) {
          done(4 + i);
          const std::int64_t first = e + i * part,
                             elements = padded<Element>(width - first < part ? width - first : part);
          add_product(queries + first * rows, tiles + i * part * panel_width, step * panel_width, elements, sums);
        }
      }
      for (int r = 0; r < rows; ++r)
        for (int j = 0; j < panels * panel_vectors; ++j) store(scores + r * span_keys + j * lanes, sums.at[r][j]);
    }
  });
}

// Less than any score, and finite: the difference of two of them is zero.
constexpr float no_score = -3.4028234664e38f;

// From a row's scores, in their place, the weights of the keys that it sees; zeros for the other keys of these panels.
// Where keys and values are codes, `scales` are to the scores and weights what they are to the codes.
// One function for every way through a span, so that the compiler cannot round one otherwise than another.
template <class Element>
[[gnu::noinline]] void weigh(const Problem& problem, float* scores, [[maybe_unused]] const Scales& scales, Range panels,
                             Range seen, float* largest_score, float* sum_of_weights) {
  alignas(64) static constexpr float numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Vec scale = broadcast(problem.scale), cap = broadcast(problem.softcap), never = broadcast(-__builtin_inff());
  Vec most[panel_vectors], total[panel_vectors];
  for (int j = 0; j < panel_vectors; ++j) {
    most[j] = broadcast(no_score);
    total[j] = zero();
  }
  for (int first = panels.begin; first < panels.end; first += panel_width) {
    const bool all_seen = seen.begin <= first && first + panel_width <= seen.end;
#pragma GCC unroll 4
    for (int j = 0; j < panel_vectors; ++j) {
      const int key = first + j * lanes;
      Vec value = load(scores + key);
      if constexpr (has_scales<Element>) value = value * load(scales.keys + key);
      value = value * scale;
      if (problem.softcap != 0) value = cap * hyperbolic_tangent(divide(value, cap));
      if (!all_seen) {
        const Vec number = load(numbers);
        value = where_less(number, broadcast(static_cast<float>(seen.begin - key)), never, value);
        value = where_less(number, broadcast(static_cast<float>(seen.end - key)), value, never);
      }
      store(scores + key, value);
      most[j] = maximum(value, most[j]);
    }
  }
  for (int j = 1; j < panel_vectors; ++j) most[0] = maximum(most[0], most[j]);
  *largest_score = largest(most[0]);
  const Vec greatest = broadcast(*largest_score);
  // Never longer than the scores: what is overwritten has been read.
  auto* weights = reinterpret_cast<Packed<Element>*>(scores);
  for (int first = panels.begin; first < panels.end; first += panel_width)
#pragma GCC unroll 4
    for (int j = 0; j < panel_vectors; ++j) {
      const int key = first + j * lanes;
      Vec value = exponential(load(scores + key) - greatest);
      total[j] = total[j] + value;
      if constexpr (has_scales<Element>) value = value * load(scales.values + key);
      store(weights + key, value);
    }
  for (int j = 1; j < panel_vectors; ++j) total[0] = total[0] + total[j];
  *sum_of_weights = sum(total[0]);
}

template <class Weight>
constexpr int weight_stride = span_keys * (sizeof(float) / sizeof(Weight));

// A block's part of a span, and its total so far: a lane for each row's maximum, one for its sum, then the rows'
// values.
struct Part {
  float* data;
  float* largest() const { return data; }
  float* sums() const { return data + lanes; }
  float* values() const { return data + 2 * lanes; }
};
// Both have room for whole panels.
inline std::int64_t part_width(const Problem& problem) {
  return (problem.value_width + panel_width - 1) / panel_width * panel_width;
}
inline std::int64_t part_floats(const Problem& problem) { return 2 * lanes + block_rows * part_width(problem); }

inline void clear(const Part& part, int size, std::int64_t width) {
  for (int r = 0; r < lanes; ++r) part.largest()[r] = no_score, part.sums()[r] = 0;
  for (std::int64_t i = 0; i < size * width; i += lanes) store(part.values() + i, zero());
}

// Sums over keys of weights times values, which give(key, vector) loads.
template <int rows, int vectors, class Weight, class Give>
inline void add_values(const Weight* weights, Range keys, float* to, std::int64_t width, const Give& give) {
  constexpr int step = keys_at_once<Weight>;
  Vec sums[rows][vectors] = {};
  for (int key = keys.begin / step * step; key < keys.end; key += step) {
    decltype(give(0, 0)) values[vectors];
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) values[j] = give(key, j);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < vectors; ++j)
        sums[r][j] = add_value(weights + r * weight_stride<Weight> + key, values[j], sums[r][j]);
  }
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < vectors; ++j) store(to + r * width + j * lanes, sums[r][j]);
}

// The values of a block from packed panels.
template <class Weight>
void weigh_panels(const Weight* weights, Range keys, int size, const Weight* panels, std::int64_t apart,
                  std::int64_t width, float* to) {
  for (std::int64_t column = 0; column < width; column += panel_width, panels += apart)
    for_rows(size, [&]<int rows>() {
      add_values<rows, panel_vectors>(weights, keys, to + column, width, [&](int key, int j) {
        return load_value(panels + key * panel_width + j * lanes * keys_at_once<Weight>);
      });
    });
}

// The same from where values lie: worth it where few blocks read them. Calls between(share of the work that is done)
// all along.
template <class Weight, class Element, class Between>
void weigh_rows(const Weight* weights, Range keys, int size, const Element* const* from, std::int64_t offset,
                std::int64_t columns, std::int64_t width, float* to, const Between& between) {
  std::int64_t column = 0;
  const auto run = [&]<int panels, bool part>() {
    for_rows(size, [&]<int rows>() {
      if constexpr (rows * panels <= block_rows)
        add_values<rows, panels * panel_vectors>(weights, keys, to + column, width, [&](int key, int j) {
          if (j == 0 && key % 8 == 0)
            between((static_cast<float>(column) +
                     static_cast<float>(panels * panel_width * (key - keys.begin)) / (keys.end - keys.begin)) /
                    static_cast<float>(columns));
          return load_value<Weight, part>(from + key, offset + column + j * lanes, columns - column - j * lanes);
        });
    });
  };
  if (2 * size <= block_rows)
    for (; column + 2 * panel_width <= columns; column += 2 * panel_width) run.template operator()<2, false>();
  for (; column + panel_width <= columns; column += panel_width) run.template operator()<1, false>();
  if (column < columns) run.template operator()<1, true>();
}

// Adds a part's maxima and sums to a total's: what their values are to be multiplied by.
struct Factors {
  alignas(64) float total[lanes], part[lanes];
};
inline Factors fold_sums(const Part& total, const Part& part) {
  const Vec before = load(total.largest()), now = load(part.largest()), most = maximum(before, now);
  Factors factors;
  const Vec old_factor = exponential(before - most), new_factor = exponential(now - most);
  store(factors.total, old_factor);
  store(factors.part, new_factor);
  store(total.largest(), most);
  store(total.sums(), fma(load(total.sums()), old_factor, load(part.sums()) * new_factor));
  return factors;
}

// Columns [first, last) of a block, in vectors.
inline void fold_values(const Factors& factors, const Part& total, const Part& part, int size, std::int64_t width,
                        std::int64_t first, std::int64_t last) {
  for (int r = 0; r < size; ++r) {
    const Vec old_factor = broadcast(factors.total[r]), new_factor = broadcast(factors.part[r]);
    for (std::int64_t i = r * width + first * lanes; i < r * width + last * lanes; i += lanes)
      store(total.values() + i, fma(load(total.values() + i), old_factor, load(part.values() + i) * new_factor));
  }
}

template <class Outer>
void finish(const Rows& rows, std::int64_t first_row, int size, const Part& total, std::int64_t first,
            std::int64_t last) {
  const Problem& problem = rows.problem;
  const std::int64_t width = part_width(problem);
  for (int r = 0; r < size; ++r) {
    const std::int64_t row = first_row + r;
    auto* to = problem.out.at<Outer>(rows.sequence.first + row / problem.group, rows.key_head, row % problem.group);
    Vec sum = broadcast(total.sums()[r]);
    if (problem.sinks.data) {
      // Beside a much larger sink, which makes this infinite, what keys have is nothing.
      const float sink = widen(problem.sinks.at<const Outer>(rows.key_head)[row % problem.group]);
      sum = sum + exponential(broadcast(sink) - broadcast(total.largest()[r]));
    }
    for (std::int64_t column = first * lanes; column < last * lanes && column < problem.value_width; column += lanes) {
      const Vec value = divide(load(total.values() + r * width + column), sum);
      const std::int64_t left = problem.value_width - column;
      if (left >= lanes)
        store(to + column, value);
      else
        store_part(to + column, value, static_cast<int>(left));
    }
  }
}
