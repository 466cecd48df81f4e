// The head of a model for who needs its largest logits alone: an 8-bit copy of the weight says which rows can be among
// them, and only those are read in full. Included inside an instruction set's namespace.
//
// A row w is s*q + e, with bytes q and a rest e; x is a*p + b*r + d, with bytes p and r. So w.x is s*q.(a*p + b*r) up
// to |e| |x| + s|q| |d|, by Cauchy and Schwarz, and up to what the products in f32 round. A row whose upper bound,
// rounded as logits are, is below the lower bounds of as many rows as are wanted can not be among them: rounding keeps
// the order.
//
// The copy: panels of bytes [K / 4][32][4], 128 above q, each followed by [3][32] f32: s, |e| with the share of |w|
// that f32 may round off, s|q|.

// More are not worth the search: then all rows are read.
constexpr int most_kept = 64;

constexpr std::int64_t screen_panel_bytes(std::int64_t K) {
  return (K + 3) / 4 * 4 * panel_width + 3 * panel_width * 4;
}

// One token's x in bytes.
struct ScreenedX {
  float fine, coarse;  // b and a
  float norm, rest;    // |x| and |d|
  std::int32_t fine_sum, coarse_sum;
};

// What one worker found of one token: the largest lower bounds, the smallest of them first.
struct Lowest {
  float bounds[most_kept];
};

inline void keep_larger(Lowest& lowest, int count, float bound) {
  if (!(bound > lowest.bounds[0])) return;
  int i = 0;
  for (; i + 1 < count && lowest.bounds[i + 1] < bound; ++i) lowest.bounds[i] = lowest.bounds[i + 1];
  lowest.bounds[i] = bound;
}

struct ScreenScratch {
  ScreenedX* x;         // [workers][tokens]
  std::int32_t* bytes;  // [workers][tokens][2][K / 4], four bytes each: p, then r
  float* values;        // [workers][K]
  float* upper;         // [tokens][panels]: the largest upper bound
  Lowest* lowest;       // [workers][tokens]
  std::int64_t end;     // bytes in all
};

inline ScreenScratch screen_scratch_of(const Call& call, int num_workers) {
  const std::int64_t tokens = call.operands[0].rows(), quads = (call.operands[0].width() + 3) / 4;
  const std::int64_t panels = (call.operands[1].rows() + panel_width - 1) / panel_width;
  std::int64_t at = linear_rows_scratch(call, num_workers);
  const auto take = [&](std::int64_t bytes) {
    std::byte* from = call.scratch + at;
    at += aligned(bytes);
    return from;
  };
  ScreenScratch found;
  found.x = reinterpret_cast<ScreenedX*>(take(num_workers * tokens * sizeof(ScreenedX)));
  found.bytes = reinterpret_cast<std::int32_t*>(take(num_workers * tokens * 2 * quads * 4));
  found.values = reinterpret_cast<float*>(take(num_workers * quads * 4 * sizeof(float)));
  found.upper = reinterpret_cast<float*>(take(tokens * panels * sizeof(float)));
  found.lowest = reinterpret_cast<Lowest*>(take(num_workers * tokens * sizeof(Lowest)));
  found.end = at;
  return found;
}

inline std::int64_t screened_rows_scratch(const Call& call, int num_workers) {
  return screen_scratch_of(call, num_workers).end;
}

// values to bytes times the result; what is left stays in values.
inline float take_bytes(float* values, std::int64_t K, std::int8_t* bytes, std::int32_t& total) {
  float most = 0;
  for (std::int64_t k = 0; k < K; ++k) most = std::fabs(values[k]) > most ? std::fabs(values[k]) : most;
  const float step = most / 127, inverse = most > 0 ? 127 / most : 0;
  total = 0;
  for (std::int64_t k = 0; k < K; ++k) {
    const float rounded = std::nearbyint(values[k] * inverse);
    bytes[k] = static_cast<std::int8_t>(rounded);
    values[k] -= rounded * step;
    total += bytes[k];
  }
  return step;
}

template <class Element>
ScreenedX screen_x(const Element* x, std::int64_t K, float* values, std::int32_t* bytes) {
  const std::int64_t quads = (K + 3) / 4;
  std::memset(bytes, 0, 2 * quads * 4);
  ScreenedX found;
  double norm = 0, rest = 0;
  for (std::int64_t k = 0; k < K; ++k) {
    values[k] = widen(x[k]);
    norm += static_cast<double>(values[k]) * values[k];
  }
  found.coarse = take_bytes(values, K, reinterpret_cast<std::int8_t*>(bytes), found.coarse_sum);
  found.fine = take_bytes(values, K, reinterpret_cast<std::int8_t*>(bytes + quads), found.fine_sum);
  for (std::int64_t k = 0; k < K; ++k) rest += static_cast<double>(values[k]) * values[k];
  constexpr float up = 1.00001f;  // what the bounds are made of must not be rounded down
  found.norm = static_cast<float>(std::sqrt(norm)) * up;
  found.rest = static_cast<float>(std::sqrt(rest)) * up;
  return found;
}

struct Screened {
  float upper;  // the largest upper bound of a panel's rows
  float largest_lower;
  alignas(64) float lower[panel_width];
};

// The bounds of one panel's rows for `tokens` tokens at once, of which rows past the last of the weight have none.
template <int tokens>
void screen_panel(const std::uint8_t* panel, const ScreenedX* x, const std::int32_t* bytes, std::int64_t K,
                  Screened* found) {
  const std::int64_t quads = (K + 3) / 4;
  Ints coarse[tokens][panel_vectors], fine[tokens][panel_vectors];
  for (int t = 0; t < tokens; ++t)
    for (int j = 0; j < panel_vectors; ++j) coarse[t][j] = fine[t][j] = no_ints();
  for (std::int64_t q = 0; q < quads; ++q)
    for (int j = 0; j < panel_vectors; ++j) {
      const std::uint8_t* from = panel + (q * panel_width + j * lanes) * 4;
      prefetch(from + bytes_ahead);
      const Ints w = load_bytes(from);
      for (int t = 0; t < tokens; ++t) {
        coarse[t][j] = add_byte_products(coarse[t][j], w, bytes[t * 2 * quads + q]);
        fine[t][j] = add_byte_products(fine[t][j], w, bytes[t * 2 * quads + quads + q]);
      }
    }
  const auto* facts = reinterpret_cast<const float*>(panel + quads * 4 * panel_width);
  for (int t = 0; t < tokens; ++t) {
    // The bytes are 128 above q, which adds 128 times the sum of x's bytes.
    const Ints coarse_shift = broadcast_int(-128 * x[t].coarse_sum), fine_shift = broadcast_int(-128 * x[t].fine_sum);
    Vec upper = broadcast(-INFINITY), lower = broadcast(-INFINITY);
    for (int j = 0; j < panel_vectors; ++j) {
      const Vec scale = load(facts + j * lanes), error = load(facts + panel_width + j * lanes);
      const Vec norm = load(facts + 2 * panel_width + j * lanes);
      const Vec sums = fma(to_floats(add_ints(coarse[t][j], coarse_shift)), broadcast(x[t].coarse),
                           to_floats(add_ints(fine[t][j], fine_shift)) * broadcast(x[t].fine));
      const Vec margin = fma(error, broadcast(x[t].norm), norm * broadcast(x[t].rest));
      const Vec least = fma(sums, scale, zero() - margin);
      upper = maximum(upper, fma(sums, scale, margin));
      lower = maximum(lower, least);
      store(found[t].lower + j * lanes, least);
    }
    found[t].upper = largest(upper);
    found[t].largest_lower = largest(lower);
  }
}

template <class Element>
float rounded_as(float x) {
  Element narrow;
  narrow_to(x, &narrow);
  return widen(narrow);
}

// (x [S, K], w [V, K] by rows, screen, keep [S]): logits, of which those that are not among the keep[s] largest may be
// -inf; 0 keeps all.
template <class Element>
void screened_rows_of(const Call& call, const Worker& worker) {
  const Tensor &x = call.operands[0], &w = call.operands[1];
  const auto* keep = call.operands[3].at<const std::int32_t>();
  const std::int64_t tokens = x.rows(), K = x.width(), rows = w.rows(), quads = (K + 3) / 4;
  for (std::int64_t t = 0; t < tokens; ++t)
    if (keep[t] < 1 || keep[t] > most_kept) {
      Call all = call;
      all.num_operands = 2;  // what follows is no bias
      return linear_rows_of<Element>(all, worker);
    }
  const std::int64_t panels = (rows + panel_width - 1) / panel_width, bytes = screen_panel_bytes(K);
  const auto* screen = call.operands[2].at<const std::uint8_t>();
  const ScreenScratch scratch = screen_scratch_of(call, worker.count);
  ScreenedX* own = scratch.x + worker.index * tokens;
  std::int32_t* own_bytes = scratch.bytes + worker.index * tokens * 2 * quads;
  Lowest* lowest = scratch.lowest + worker.index * tokens;
  const float* spread = spread_rows<Element, Element>(call, worker);
  for (std::int64_t t = 0; t < tokens; ++t) {
    own[t] = screen_x(x.at<const Element>(t), K, scratch.values + worker.index * quads * 4, own_bytes + t * 2 * quads);
    for (float& bound : lowest[t].bounds) bound = -INFINITY;
  }
  const std::int64_t first = worker.first(panels), last = worker.last(panels);
  Screened found[4];
  for (std::int64_t panel = first; panel < last; ++panel) {
    const std::int64_t real = rows - panel * panel_width < panel_width ? rows - panel * panel_width : panel_width;
    const auto look = [&]<int count>(std::int64_t t) {
      screen_panel<count>(screen + panel * bytes, own + t, own_bytes + t * 2 * quads, K, found);
      for (int i = 0; i < count; ++i) {
        scratch.upper[(t + i) * panels + panel] = found[i].upper;
        if (!(found[i].largest_lower > lowest[t + i].bounds[0])) continue;
        for (std::int64_t r = 0; r < real; ++r) keep_larger(lowest[t + i], keep[t + i], found[i].lower[r]);
      }
    };
    std::int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) look.template operator()<4>(t);
    for (; t + 2 <= tokens; t += 2) look.template operator()<2>(t);
    for (; t < tokens; ++t) look.template operator()<1>(t);
  }
  worker.barrier();
  for (std::int64_t t = 0; t < tokens; ++t) {
    Lowest all = scratch.lowest[t];
    for (int other = 1; other < worker.count; ++other)
      for (int i = 0; i < keep[t]; ++i) keep_larger(all, keep[t], scratch.lowest[other * tokens + t].bounds[i]);
    const float least = rounded_as<Element>(all.bounds[0]);
    Element* out = call.out.at<Element>(t);
    for (std::int64_t panel = first; panel < last; ++panel) {
      const std::int64_t begin = panel * panel_width, end = begin + panel_width < rows ? begin + panel_width : rows;
      // NaN is kept, so that whoever looks at the logits finds it.
      if (rounded_as<Element>(scratch.upper[t * panels + panel]) < least) {
        for (std::int64_t row = begin; row < end; ++row) narrow_to(-INFINITY, out + row);
      } else {
        row_products(spread + t * spread_elements<Element>(K), 1, w.at<const Element>(), w.strides[0], K, begin, end,
                     [&](std::int64_t, std::int64_t row, float value) { narrow_to(value, out + row); });
      }
    }
  }
}

inline void screened_rows(const Call& call, const Worker& worker) {
  if (call.out.dtype == DType::bf16) return screened_rows_of<bf16>(call, worker);
  screened_rows_of<float>(call, worker);
}
