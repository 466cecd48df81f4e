// QuantizedRows in 8 bits, as the products with quantized weights read them. Included inside an instruction set's
// namespace.

// Rows that are computed together, so that they share what unpacks a weight; with more the sums would not stay in
// registers.
constexpr int most_rows = lanes == 16 ? 8 : 4;

// Rows in blocks of one size; it is one that there is a product for, and the last blocks may have fewer rows.
struct RowBlocks {
  std::int64_t count;
  int rows;

  explicit RowBlocks(std::int64_t all)
      : count((all + most_rows - 1) / most_rows), rows(count ? fitting((all + count - 1) / count) : 1) {}
  static int fitting(std::int64_t rows) {
    constexpr int sizes[] = {1, 2, 4, 6};
    for (const int size : sizes)
      if (rows <= size) return size;
    return most_rows;
  }
  int size(std::int64_t block, std::int64_t all) const { return static_cast<int>(smaller(rows, all - block * rows)); }
};

// Calls f.operator()<rows>() for a block's rows.
template <class Function>
inline void for_block_rows(int rows, Function&& f) {
  switch (rows) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    case 4:
      return f.template operator()<4>();
#if TSK_LANES == 16
    case 6:
      return f.template operator()<6>();
    case 8:
      return f.template operator()<8>();
#endif
  }
}

// A block of rows: codes [K / 4][rows][4], and for each group and row the scale, the sum of what the codes stand for,
// and for each subgroup what its sum of products begins with: minus the codes times the offset that the weights are
// stored with.
template <class Format>
struct QuantizedRows {
  std::int8_t* codes;
  float *scales, *sums;
  std::int32_t* starts;

  static std::int64_t bytes(std::int64_t K, int rows) {
    return aligned(rows * (Format::padded(K) + Format::num_groups(K) * (8 + 4 * Format::subgroups)));
  }
  QuantizedRows(std::byte* at, std::int64_t K, int rows) {
    codes = reinterpret_cast<std::int8_t*>(at);
    scales = reinterpret_cast<float*>(at + rows * Format::padded(K));
    sums = scales + rows * Format::num_groups(K);
    starts = reinterpret_cast<std::int32_t*>(sums + rows * Format::num_groups(K));
  }
};

struct Scale {
  float scale, inverse;
  // So small that its inverse would be infinite: as zero. inf and NaN stay, and make all that the row gives NaN.
  explicit Scale(float magnitude)
      : scale(magnitude < 1e-30f ? 0.0f : magnitude / 127.0f), inverse(scale == 0.0f ? 0.0f : 127.0f / magnitude) {}
};

constexpr int group_vectors = group_codes / lanes;

// Up to a group's elements, then zeros.
template <class Element>
inline void load_group(const Element* x, std::int64_t left, Vec (&values)[group_vectors]) {
  for (int j = 0; j < group_vectors; ++j) {
    const std::int64_t count = left - j * lanes;
    values[j] = count >= lanes ? load(x + j * lanes)
                : count > 0    ? load_part(x + j * lanes, static_cast<int>(count))
                               : zero();
  }
}

inline float largest_of(const Vec (&values)[group_vectors]) {
  Vec most = zero();
  for (const Vec& value : values) most = larger_magnitude(most, value);
  return largest_magnitude(most);
}

// Row r of a block, quantized.
template <class Format, class Element>
void quantize_row(const Element* x, std::int64_t K, int r, int rows, const QuantizedRows<Format>& to) {
  constexpr int offset = offset_left<Format::bits>(Format::offset), subgroups = Format::subgroups;
  constexpr int sub_vectors = group_vectors / subgroups;
  Vec values[group_vectors];
  Vec most = zero();
  if constexpr (!Format::by_groups) {
    for (std::int64_t k = 0; k < K; k += group_codes) {
      load_group(x + k, K - k, values);
      for (const Vec& value : values) most = larger_magnitude(most, value);
    }
  }
  Scale scale(largest_magnitude(most));
  std::int32_t whole = 0;
  const std::int64_t stored = Format::padded(K);
  for (std::int64_t k = 0, group = 0; k < stored; k += group_codes, ++group) {
    load_group(x + k, K - k, values);
    if constexpr (Format::by_groups) scale = Scale(largest_of(values));
    alignas(64) std::int8_t codes[group_codes];
    std::int32_t sums[subgroups] = {};
    for (int j = 0; j < group_vectors; ++j) {
      const Ints rounded = round_to_codes(values[j] * broadcast(scale.inverse));
      store_codes(codes + j * lanes, rounded);
      sums[j / sub_vectors] += sum_ints(rounded);
    }
    const int quads = static_cast<int>(smaller(group_codes, stored - k) / 4);
    for (int quad = 0; quad < quads; ++quad)
      std::memcpy(to.codes + ((k / 4 + quad) * rows + r) * 4, codes + quad * 4, 4);
    std::int32_t sum = 0;
    for (int s = 0; s < subgroups; ++s) sum += sums[s];
    if constexpr (Format::by_groups) {
      to.scales[group * rows + r] = scale.scale;
      to.sums[group * rows + r] = scale.scale * static_cast<float>(sum);
      for (int s = 0; s < subgroups; ++s) to.starts[(group * subgroups + s) * rows + r] = -offset * sums[s];
    }
    whole += sum;
  }
  if constexpr (!Format::by_groups) {
    to.scales[r] = scale.scale;
    to.starts[r] = -offset * whole;
  }
}

template <class Format, class Element>
void quantize_block(const Tensor& x, std::int64_t first, int count, int rows, const QuantizedRows<Format>& to) {
  for (int r = 0; r < count; ++r) quantize_row(vector_of<Element>(x, first + r), x.width(), r, rows, to);
  // What no row fills is computed with too: any codes do, as nobody reads the result.
}
