// The product that everything large is made of: rows of x with a panel of 32 outputs. Included inside an instruction
// set's namespace.
//
// A panel holds 32 rows of a weight side by side, so that each lane of a vector is one output and adds up its products
// in the order of k: what a token gets does not depend on how many tokens share the step. bf16 panels are [K /
// 2][32][2], f32 panels [K][32].

constexpr int panel_width = 32;
constexpr int panel_vectors = panel_width / lanes;
// As many rows as accumulators fit in registers beside what they are made of.
constexpr int block_rows = lanes == 16 ? 12 : 3;

// What x is packed to for weights of a type, and in which order: element k of row r of a block.
template <class Weight>
struct Packing {
  using Element = float;
  static std::int64_t index(std::int64_t k, int row, int rows) { return k * rows + row; }
};
#ifdef TSK_DOT_BF16
template <>
struct Packing<bf16> {
  using Element = bf16;
  static std::int64_t index(std::int64_t k, int row, int rows) { return (k / 2 * rows + row) * 2 + k % 2; }
};
#endif

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

template <class Weight>
constexpr std::int64_t padded(std::int64_t k) {
  constexpr std::int64_t together = sizeof(float) / sizeof(Weight);
  return (k + together - 1) / together * together;
}

inline void assign(float x, float* to) { *to = x; }
inline void assign(float x, bf16* to) { *to = round_bf16(x); }

// Where each row of a block begins.
template <class Element>
using RowsAt = const Element* [block_rows];

// Rows of x in the order in which a block reads them; k is padded with zeros.
template <class Weight, class Element>
void pack_block(const RowsAt<Element>& at, int rows, std::int64_t K, typename Packing<Weight>::Element* packed) {
  std::int64_t done = 0;
  if constexpr (sizeof(*packed) == sizeof(float)) {
    for (; done + lanes <= K; done += lanes) {
      Vec tile[lanes];
      for (int r = 0; r < lanes; ++r) tile[r] = r < block_rows && r < rows ? load(at[r] + done) : zero();
      transpose(tile);
      float* to = packed + done * rows;
      // A whole vector reaches into the place of the next one, which then puts it right; the last ones must not.
      for (int i = 0; i < lanes; ++i) {
        if (i * rows + lanes <= lanes * rows)
          store(to + i * rows, tile[i]);
        else
          store_part(to + i * rows, tile[i], rows);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (std::int64_t k = done; k < K; ++k) assign(widen(at[r][k]), packed + Packing<Weight>::index(k, r, rows));
    if (padded<Weight>(K) != K) assign(0.0f, packed + Packing<Weight>::index(K, r, rows));
  }
}

template <int rows, int panels>
struct Sums {
  Vec at[rows][panels * panel_vectors];
};

// What is asked of memory while a panel is multiplied: a part of the panel that comes next, evenly, so that products
// and memory are busy at the same time. What the processor asks for by itself ends at the end of a page of 4 KiB.
struct Prefetch {
  const std::byte* from;
  std::int64_t step, apart;  // bytes: for each step of the product, and between panels side by side
  template <int panels>
  TSK_INLINE void take() {
    for (int p = 0; p < panels; ++p) prefetch(from + p * apart);
    from += step;
  }
};
struct NoPrefetch {
  template <int panels>
  TSK_INLINE void take() {}
};

// In a copy of its own, `own`, which no other pointer can reach: then the sums stay in registers.
// sums += x times the panels, for a padded K; x is packed for so many rows, and the panels lie `apart` elements from
// each other.
template <int rows, int panels, class Next = NoPrefetch>
inline void add_product(const float* x, const float* panel, std::int64_t apart, std::int64_t K,
                        Sums<rows, panels>& sums, Next next = {}) {
  Sums<rows, panels> own = sums;
  for (std::int64_t k = 0; k < K; ++k, x += rows, panel += panel_width) {
    next.template take<panels>();
    Vec w[panels * panel_vectors];
#pragma GCC unroll 8
    for (int j = 0; j < panels * panel_vectors; ++j)
      w[j] = load(panel + j / panel_vectors * apart + j % panel_vectors * lanes);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const Vec value = broadcast(x[r]);
#pragma GCC unroll 8
      for (int j = 0; j < panels * panel_vectors; ++j) own.at[r][j] = fma(value, w[j], own.at[r][j]);
    }
  }
  sums = own;
}

#ifdef TSK_DOT_BF16
template <int rows, int panels, class Next = NoPrefetch>
inline void add_product(const bf16* x, const bf16* panel, std::int64_t apart, std::int64_t K, Sums<rows, panels>& sums,
                        Next next = {}) {
  Sums<rows, panels> own = sums;
  for (std::int64_t k = 0; k < K; k += 2, x += 2 * rows, panel += 2 * panel_width) {
    next.template take<panels>();
    __m512bh w[panels * panel_vectors];
#pragma GCC unroll 8
    for (int j = 0; j < panels * panel_vectors; ++j)
      w[j] = (__m512bh)_mm512_loadu_si512(panel + j / panel_vectors * apart + j % panel_vectors * 2 * lanes);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      std::int32_t both;
      std::memcpy(&both, x + 2 * r, sizeof both);
      const __m512bh value = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 8
      for (int j = 0; j < panels * panel_vectors; ++j) own.at[r][j] = _mm512_dpbf16_ps(own.at[r][j], w[j], value);
    }
  }
  sums = own;
}
#else
// The even elements of k, then the odd ones: of both at once, or of more values of x than one, there are not registers
// enough beside the sums.
template <int rows, int panels, class Next = NoPrefetch>
inline void add_product(const float* x, const bf16* panel, std::int64_t apart, std::int64_t K, Sums<rows, panels>& sums,
                        Next next = {}) {
  Sums<rows, panels> own = sums;
  for (std::int64_t k = 0; k < K; k += 2, x += 2 * rows, panel += 2 * panel_width) {
    next.template take<panels>();
    Vec w[panels * panel_vectors];
    const auto add = [&](const float* values) {
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        const Vec value = broadcast(values[r]);
#pragma GCC unroll 8
        for (int j = 0; j < panels * panel_vectors; ++j) own.at[r][j] = fma(value, w[j], own.at[r][j]);
      }
    };
#pragma GCC unroll 8
    for (int j = 0; j < panels * panel_vectors; ++j)
      w[j] = load_even(panel + j / panel_vectors * apart + j % panel_vectors * 2 * lanes);
    add(x);
#pragma GCC unroll 8
    for (int j = 0; j < panels * panel_vectors; ++j)
      w[j] = load_odd(panel + j / panel_vectors * apart + j % panel_vectors * 2 * lanes);
    add(x + rows);
  }
  sums = own;
}

// A bf16 panel as an f32 one: worth it where many blocks read it. The products are the same ones in the same order.
inline void widen_panel(const bf16* panel, std::int64_t K, float* wide) {
  for (std::int64_t k = 0; k < K; k += 2, panel += 2 * panel_width, wide += 2 * panel_width)
    for (int j = 0; j < panel_vectors; ++j) {
      const Pair w = load_pairs(panel + j * 2 * lanes);
      store(wide + j * lanes, w.even);
      store(wide + panel_width + j * lanes, w.odd);
    }
}
#endif

// Calls f.operator()<rows>() for a number of rows that is known only now.
template <class Function>
inline void for_rows(int rows, Function&& f) {
  switch (rows) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
#if TSK_LANES == 16
    case 4:
      return f.template operator()<4>();
    case 5:
      return f.template operator()<5>();
    case 6:
      return f.template operator()<6>();
    case 7:
      return f.template operator()<7>();
    case 8:
      return f.template operator()<8>();
    case 9:
      return f.template operator()<9>();
    case 10:
      return f.template operator()<10>();
    case 11:
      return f.template operator()<11>();
    case 12:
      return f.template operator()<12>();
#endif
  }
}

// Rows in even blocks, since a block of one row reads a panel as slowly as one of many.
struct Blocks {
  std::int64_t rows, count;
  explicit Blocks(std::int64_t rows) : rows(rows), count((rows + block_rows - 1) / block_rows) {}
  std::int64_t first(std::int64_t block) const { return rows * block / count; }
  int size(std::int64_t block) const { return static_cast<int>(first(block + 1) - first(block)); }
};
