// Products with weights: by panels, and by rows where the weight is read by row elsewhere too. Included inside an
// instruction set's namespace. A row of the result has the same bits in any company.

// So many blocks make it worth while to widen a panel for all of them.
constexpr std::int64_t fewest_blocks = 3;

// How a product of many rows goes through its operands: some panels at once, so that a block of x is brought to the
// first cache for all of them, and K in chunks, of which those panels stay in the second cache and the block in the
// first. Between chunks the sums are kept, so that what is added up in which order stays the same.
struct Tiles {
  static constexpr std::int64_t longest_chunk = 704, cached_bytes = 512 << 10;
  std::int64_t chunks, k, panels;  // k: of a chunk
  explicit Tiles(std::int64_t K) : chunks((K + longest_chunk - 1) / longest_chunk) {
    k = (K + chunks - 1) / chunks;
    k += k % 2;
    panels = cached_bytes / (k * panel_width * static_cast<std::int64_t>(sizeof(float)));
  }
  std::int64_t wide_bytes() const { return k * panels * panel_width * static_cast<std::int64_t>(sizeof(float)); }
  std::int64_t kept_bytes(std::int64_t rows) const {
    return chunks > 1 ? rows * panels * panel_width * static_cast<std::int64_t>(sizeof(float)) : 0;
  }
};

inline std::int64_t aligned(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct LinearShape {
  std::int64_t rows, K, outputs, panels;
};

template <class Weight>
LinearShape shape_of(const Call& call) {
  const Tensor &x = call.operands[0], &w = call.operands[1];
  return {x.rows() * x.vectors(), x.width(), call.out.width(), w.sizes[0]};
}

template <class Weight>
std::int64_t packed_bytes(const LinearShape& shape) {
  return aligned(shape.rows * padded<Weight>(shape.K) * sizeof(typename Packing<Weight>::Element));
}

template <class Weight>
std::int64_t linear_scratch_of(const Call& call, int num_workers) {
  const LinearShape shape = shape_of<Weight>(call);
  const Blocks blocks(shape.rows);
  const std::int64_t packed = packed_bytes<Weight>(shape) * (blocks.count == 1 ? num_workers : 1);
  if (blocks.count < fewest_blocks) return packed;
  const Tiles tiles(padded<Weight>(shape.K));
  return packed + (tiles.wide_bytes() + tiles.kept_bytes(shape.rows)) * num_workers;
}

inline std::int64_t linear_scratch(const Call& call, int num_workers) {
  return call.operands[1].dtype == DType::bf16 ? linear_scratch_of<bf16>(call, num_workers)
                                               : linear_scratch_of<float>(call, num_workers);
}

// Where row r of x begins: rows of x, and vectors within them, may be spaced differently.
template <class Element>
const Element* vector_of(const Tensor& x, std::int64_t index) {
  const std::int64_t vectors = x.vectors();
  return x.at<const Element>(index / vectors) + index % vectors * x.vector_stride();
}

// x in blocks, packed for panels of `Weight`. With one block every worker packs its own copy, which is cheaper than to
// wait for another.
template <class Weight, class Element>
const typename Packing<Weight>::Element* pack_rows(const Call& call, const LinearShape& shape, const Blocks& blocks,
                                                   const Worker& worker) {
  using Packed = typename Packing<Weight>::Element;
  const Tensor& x = call.operands[0];
  const std::int64_t K = padded<Weight>(shape.K);
  const auto pack = [&](std::int64_t block, Packed* to) {
    RowsAt<Element> at = {};
    for (int r = 0; r < blocks.size(block); ++r) at[r] = vector_of<Element>(x, blocks.first(block) + r);
    pack_block<Weight, Element>(at, blocks.size(block), shape.K, to);
  };
  if (blocks.count == 1) {
    auto* own = reinterpret_cast<Packed*>(call.scratch + worker.index * packed_bytes<Weight>(shape));
    pack(0, own);
    return own;
  }
  auto* packed = reinterpret_cast<Packed*>(call.scratch);
  for (std::int64_t b = worker.first(blocks.count); b < worker.last(blocks.count); ++b)
    pack(b, packed + blocks.first(b) * K);
  worker.barrier();
  return packed;
}

// Many rows: finish(row, panel, vectors) for every row of x and every panel of this worker.
template <class Weight, class Packed, class Finish>
void tiled_product(const Call& call, const Worker& worker, const LinearShape& shape, const Blocks& blocks,
                   const Packed* packed, const Finish& finish) {
  const std::int64_t K = padded<Weight>(shape.K), last = worker.last(shape.panels);
  const Tiles tiles(K);
  const auto* w = call.operands[1].at<const Weight>();
  std::byte* own =
      call.scratch + packed_bytes<Weight>(shape) + worker.index * (tiles.wide_bytes() + tiles.kept_bytes(shape.rows));
  [[maybe_unused]] auto* wide = reinterpret_cast<float*>(own);
  auto* kept = reinterpret_cast<float*>(own + tiles.wide_bytes());
  for (std::int64_t panel = worker.first(shape.panels); panel < last; panel += tiles.panels) {
    const std::int64_t count = smaller(tiles.panels, last - panel);
    for (std::int64_t k = 0; k < K; k += tiles.k) {
      const std::int64_t length = smaller(tiles.k, K - k);
      const bool is_first = k == 0, is_last = k + length == K;
#ifndef TSK_DOT_BF16
      if constexpr (sizeof(Weight) == 2)
        for (std::int64_t p = 0; p < count; ++p)
          widen_panel(w + ((panel + p) * K + k) * panel_width, length, wide + p * length * panel_width);
#endif
      for (std::int64_t b = 0; b < blocks.count; ++b)
        for_rows(blocks.size(b), [&]<int rows>() {
          for (std::int64_t p = 0; p < count; ++p) {
            Sums<rows, 1> sums = {};
            const auto keep = [&](int r) { return kept + ((blocks.first(b) + r) * tiles.panels + p) * panel_width; };
            if (!is_first)
              for (int r = 0; r < rows; ++r)
                for (int j = 0; j < panel_vectors; ++j) sums.at[r][j] = load(keep(r) + j * lanes);
            const auto* x = packed + blocks.first(b) * K + k * rows;
            if constexpr (sizeof(Packed) != sizeof(Weight))
              add_product(x, static_cast<const float*>(wide + p * length * panel_width), 0, length, sums);
            else
              add_product(x, w + ((panel + p) * K + k) * panel_width, 0, length, sums);
            for (int r = 0; r < rows; ++r)
              if (is_last)
                finish(blocks.first(b) + r, panel + p, sums.at[r]);
              else
                for (int j = 0; j < panel_vectors; ++j) store(keep(r) + j * lanes, sums.at[r][j]);
          }
        });
    }
  }
}

// Runs finish(row, panel, vectors) for every row of x and every panel of this worker.
template <class Weight, class Element, class Finish>
void panel_linear(const Call& call, const Worker& worker, const Finish& finish) {
  const LinearShape shape = shape_of<Weight>(call);
  if (shape.rows == 0) return;
  const Blocks blocks(shape.rows);
  const std::int64_t K = padded<Weight>(shape.K), apart = K * panel_width;
  const auto* packed = pack_rows<Weight, Element>(call, shape, blocks, worker);
  if (blocks.count >= fewest_blocks) return tiled_product<Weight>(call, worker, shape, blocks, packed, finish);
  const auto* w = call.operands[1].at<const Weight>();
  const auto panel_bytes = static_cast<std::int64_t>(apart * sizeof(Weight));
  const std::int64_t last = worker.last(shape.panels);
  std::int64_t panel = worker.first(shape.panels);
  const auto run = [&]<int panels>(std::int64_t b) {
    for_rows(blocks.size(b), [&]<int rows>() {
      if constexpr (rows * panels * panel_vectors <= block_rows * panel_vectors) {
        Sums<rows, panels> sums = {};
        // Each block asks for its part of the panel that comes next.
        const auto* next = reinterpret_cast<const std::byte*>(w + (panel + panels) * apart);
        const Prefetch coming{next + panel_bytes * b / blocks.count, 4 * panel_width / blocks.count, panel_bytes};
        add_product(packed + blocks.first(b) * K, w + panel * apart, apart, K, sums, coming);
        for (int r = 0; r < rows; ++r)
          for (int p = 0; p < panels; ++p) finish(blocks.first(b) + r, panel + p, sums.at[r] + p * panel_vectors);
      }
    });
  };
  // Few rows wait for memory and for their own sums: two panels side by side keep both busy.
  if (blocks.count == 1 && 2 * blocks.size(0) <= block_rows)
    for (; panel + 1 < last; panel += 2) run.template operator()<2>(0);
  for (; panel < last; ++panel)
    for (std::int64_t b = 0; b < blocks.count; ++b) run.template operator()<1>(b);
}

template <class Element>
Element* out_vector(const Tensor& out, std::int64_t index) {
  return const_cast<Element*>(vector_of<Element>(out, index));
}

template <class Element, class Weight>
void linear_panels_of(const Call& call, const Worker& worker) {
  const auto* bias = call.num_operands > 2 ? call.operands[2].at<const Element>() : nullptr;
  const std::int64_t outputs = call.out.width();
  panel_linear<Weight, Element>(call, worker, [&](std::int64_t row, std::int64_t panel, const Vec* sums) {
    Element* to = out_vector<Element>(call.out, row);
    for (int j = 0; j < panel_vectors; ++j) {
      const std::int64_t column = panel * panel_width + j * lanes;
      const std::int64_t left = outputs - column;
      if (left >= lanes) {
        store(to + column, bias ? sums[j] + load(bias + column) : sums[j]);
      } else if (left > 0) {
        const int count = static_cast<int>(left);
        store_part(to + column, bias ? sums[j] + load_part(bias + column, count) : sums[j], count);
      }
    }
  });
}

inline void linear_panels(const Call& call, const Worker& worker) {
  if (call.out.dtype == DType::bf16) return linear_panels_of<bf16, bf16>(call, worker);
  linear_panels_of<float, float>(call, worker);
}

// Of each panel the first half are gates and the second what they gate: activation(gate) * up.
template <class Element, class Weight, class Activation>
void gated_panels_of(const Call& call, const Worker& worker, const Activation& activation) {
  constexpr int half = panel_vectors / 2;
  const std::int64_t outputs = call.out.width();
  panel_linear<Weight, Element>(call, worker, [&](std::int64_t row, std::int64_t panel, const Vec* sums) {
    Element* to = out_vector<Element>(call.out, row);
    for (int j = 0; j < half; ++j) {
      const std::int64_t column = panel * (panel_width / 2) + j * lanes;
      const std::int64_t left = outputs - column;
      if (left <= 0) break;
      const Vec result = activation(sums[j]) * sums[half + j];
      if (left >= lanes)
        store(to + column, result);
      else
        store_part(to + column, result, static_cast<int>(left));
    }
  });
}

enum class Activation : int { silu, gelu, gelu_tanh };

template <class Function>
void with_activation(double number, Function&& f) {
  switch (static_cast<Activation>(static_cast<int>(number))) {
    case Activation::silu:
      return f([](Vec x) { return silu(x); });
    case Activation::gelu:
      return f([](Vec x) { return gelu(x); });
    case Activation::gelu_tanh:
      return f([](Vec x) { return gelu_tanh(x); });
  }
}

inline void gated_panels(const Call& call, const Worker& worker) {
  with_activation(call.numbers[0], [&](auto activation) {
    if (call.out.dtype == DType::bf16) return gated_panels_of<bf16, bf16>(call, worker, activation);
    gated_panels_of<float, float>(call, worker, activation);
  });
}

// ---- weights by rows: the lanes share out k, and are added up in a fixed tree.

// Vectors of k that one row of x is spread over: for bf16 weights the even and the odd of each 2 * lanes neighbours.
template <class Weight>
constexpr std::int64_t spread_step = sizeof(Weight) == 2 ? 2 * lanes : lanes;

template <class Weight>
std::int64_t spread_elements(std::int64_t K) {
  return (K + spread_step<Weight> - 1) / spread_step<Weight> * spread_step<Weight>;
}

template <class Weight, class Element>
void spread_row(const Element* x, std::int64_t K, float* to) {
  constexpr std::int64_t step = spread_step<Weight>;
  for (std::int64_t k = 0; k < spread_elements<Weight>(K); ++k) {
    const std::int64_t within = k % step;
    const std::int64_t place = sizeof(Weight) == 2 ? k - within + within % 2 * lanes + within / 2 : k;
    to[place] = k < K ? widen(x[k]) : 0.0f;
  }
}

inline std::int64_t linear_rows_scratch(const Call& call, int num_workers) {
  const Tensor& x = call.operands[0];
  return aligned(x.rows() * x.vectors() * spread_elements<bf16>(x.width()) * sizeof(float)) * num_workers;
}

template <int count>
struct RowSums {
  Vec at[count];
};

// next: rows that come after these, and are asked for meanwhile.
template <int tokens, int rows>
inline void add_rows(const float* x, std::int64_t x_stride, const bf16* w, const bf16* next, std::int64_t w_stride,
                     std::int64_t K, RowSums<tokens * rows>& sums) {
  std::int64_t k = 0;
  const auto step = [&](const Pair* pairs) {
    for (int r = 0; r < rows; ++r) prefetch(next + r * w_stride + k);
    for (int t = 0; t < tokens; ++t) {
      const Vec even = load(x + t * x_stride + k), odd = load(x + t * x_stride + k + lanes);
      for (int r = 0; r < rows; ++r) {
        sums.at[t * rows + r] = fma(even, pairs[r].even, sums.at[t * rows + r]);
        sums.at[t * rows + r] = fma(odd, pairs[r].odd, sums.at[t * rows + r]);
      }
    }
  };
  for (; k + 2 * lanes <= K; k += 2 * lanes) {
    Pair pairs[rows];
    for (int r = 0; r < rows; ++r) pairs[r] = load_pairs(w + r * w_stride + k);
    step(pairs);
  }
  if (k < K) {
    Pair pairs[rows];
    for (int r = 0; r < rows; ++r) {
      bf16 rest[2 * lanes] = {};
      std::memcpy(rest, w + r * w_stride + k, (K - k) * sizeof(bf16));
      pairs[r] = load_pairs(rest);
    }
    step(pairs);
  }
}

template <int tokens, int rows>
inline void add_rows(const float* x, std::int64_t x_stride, const float* w, const float* next, std::int64_t w_stride,
                     std::int64_t K, RowSums<tokens * rows>& sums) {
  std::int64_t k = 0;
  const auto step = [&](const Vec* values) {
    for (int r = 0; r < rows; ++r) prefetch(next + r * w_stride + k);
    for (int t = 0; t < tokens; ++t) {
      const Vec value = load(x + t * x_stride + k);
      for (int r = 0; r < rows; ++r) sums.at[t * rows + r] = fma(value, values[r], sums.at[t * rows + r]);
    }
  };
  for (; k + lanes <= K; k += lanes) {
    Vec values[rows];
    for (int r = 0; r < rows; ++r) values[r] = load(w + r * w_stride + k);
    step(values);
  }
  if (k < K) {
    Vec values[rows];
    for (int r = 0; r < rows; ++r) values[r] = load_part(w + r * w_stride + k, static_cast<int>(K - k));
    step(values);
  }
}

// Products of all tokens with rows [first, last) of w: give(token, row, value).
template <class Weight, class Give>
void row_products(const float* x, std::int64_t tokens, const Weight* w, std::int64_t w_stride, std::int64_t K,
                  std::int64_t first, std::int64_t last, const Give& give) {
  constexpr int most_tokens = lanes == 16 ? 6 : 2;
  const std::int64_t x_stride = spread_elements<Weight>(K);
  const auto run = [&]<int rows>(std::int64_t row) {
    for (std::int64_t t = 0; t < tokens; t += most_tokens) {
      const auto some = [&]<int count>() {
        RowSums<count * rows> sums = {};
        const std::int64_t next = row + 2 * rows <= last ? row + rows : row;
        add_rows<count, rows>(x + t * x_stride, x_stride, w + row * w_stride, w + next * w_stride, w_stride, K, sums);
        for (int i = 0; i < count; ++i)
          for (int r = 0; r < rows; ++r) give(t + i, row + r, sum(sums.at[i * rows + r]));
      };
      switch (tokens - t < most_tokens ? tokens - t : most_tokens) {
        case 1:
          some.template operator()<1>();
          break;
        case 2:
          some.template operator()<2>();
          break;
#if TSK_LANES == 16
        case 3:
          some.template operator()<3>();
          break;
        case 4:
          some.template operator()<4>();
          break;
        case 5:
          some.template operator()<5>();
          break;
        case 6:
          some.template operator()<6>();
          break;
#endif
      }
    }
  };
  std::int64_t row = first;
  for (; row + 4 <= last; row += 4) run.template operator()<4>(row);
  for (; row < last; ++row) run.template operator()<1>(row);
}

// x spread by every worker for itself: little beside a weight that is worth being stored by rows.
template <class Weight, class Element>
const float* spread_rows(const Call& call, const Worker& worker) {
  const Tensor& x = call.operands[0];
  const std::int64_t rows = x.rows() * x.vectors(), K = x.width();
  auto* spread =
      reinterpret_cast<float*>(call.scratch + worker.index * (linear_rows_scratch(call, worker.count) / worker.count));
  for (std::int64_t r = 0; r < rows; ++r)
    spread_row<Weight>(vector_of<Element>(x, r), K, spread + r * spread_elements<Weight>(K));
  return spread;
}

template <class Element>
void linear_rows_of(const Call& call, const Worker& worker) {
  const Tensor &x = call.operands[0], &w = call.operands[1];
  const float* spread = spread_rows<Element, Element>(call, worker);
  const auto* bias = call.num_operands > 2 ? call.operands[2].at<const Element>() : nullptr;
  row_products(spread, x.rows() * x.vectors(), w.at<const Element>(), w.strides[0], x.width(), worker.first(w.rows()),
               worker.last(w.rows()), [&](std::int64_t token, std::int64_t row, float value) {
                 narrow_to(bias ? value + widen(bias[row]) : value, out_vector<Element>(call.out, token) + row);
               });
}

inline void linear_rows(const Call& call, const Worker& worker) {
  if (call.out.dtype == DType::bf16) return linear_rows_of<bf16>(call, worker);
  linear_rows_of<float>(call, worker);
}
