// The weights of a mixture's experts as its products read them: whole panels, or codes that become some just before.
// Included inside an instruction set's namespace.

// A panel longer than this would not stay in the cache when it is widened.
constexpr std::int64_t widest_panel = 4096;

// From one panel of an expert on. `add` adds the product of rows of x with panels side by side to their sums; `widened`
// calls f with what so many blocks of rows read: this, or a copy that costs them less. Weight: of what is computed
// with.
template <class Element>
class WholePanels {
 public:
  using Weight = Element;
  using Packed = typename Packing<Weight>::Element;
  static constexpr bool is_widened = sizeof(Weight) != sizeof(Packed);

  // How many panels an expert has, and inputs they have as they are stored.
  static std::int64_t panels(const Tensor& stacked, std::int64_t) { return stacked.sizes[1]; }
  static std::int64_t inputs(const Tensor& stacked, std::int64_t) {
    return stacked.sizes[2] * static_cast<std::int64_t>(sizeof(float) / sizeof(Weight));
  }

  WholePanels(const Tensor& stacked, std::int64_t expert, std::int64_t panel, std::int64_t K)
      : data_(stacked.at<const Weight>(expert) + panel * K * panel_width), K_(K) {}

  template <int rows, int panels>
  void add(const Packed* x, Sums<rows, panels>& sums) const {
    add_product(x, data_, K_ * panel_width, K_, sums);
  }

  template <class Function>
  void widened(std::int64_t num_blocks, [[maybe_unused]] Packed* wide, const Function& f) const {
    if constexpr (is_widened) {
      if (num_blocks >= fewest_blocks && K_ <= widest_panel) {
        widen_panel(data_, K_, wide);
        return f(WholePanels<Packed>(wide, K_));
      }
    }
    f(*this);
  }

  WholePanels(const Weight* data, std::int64_t K) : data_(data), K_(K) {}

 private:
  const Weight* data_;
  std::int64_t K_;
};

// ---- MXFP4: the panels of tskernels/quantized.py, `mxfp4`. A group of 32 k has a power of two of each output, then
// four times the codes of eight k: in byte j of an output those of k = j and, above it, k = 4 + j.

constexpr std::int64_t mxfp4_step_bytes = panel_width * 4, mxfp4_group_bytes = panel_width + 4 * mxfp4_step_bytes;

#if TSK_LANES == 16
// Of each lane the lowest four bits, as the float that they are.
inline Vec e2m1_values(Ints codes) {
  const Vec values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f,
                                    -3.0f, -4.0f, -6.0f);
  return _mm512_permutexvar_ps(codes, values);
}
template <int count>
inline Ints without_low_bits(Ints a) {
  return _mm512_srli_epi32(a, count);
}
// Powers of two by their exponents plus 127.
inline Vec powers_of_two(const std::uint8_t* exponents) {
  const Ints wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(exponents)));
  // The least is no normal float.
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(wide, 23), _mm512_set1_epi32(0x00400000)));
}
#else
inline Vec e2m1_values(Ints codes) {
  const Vec values = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
  const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(codes, 28), _mm256_set1_epi32(INT32_MIN));
  return _mm256_xor_ps(_mm256_permutevar8x32_ps(values, codes), _mm256_castsi256_ps(sign));
}
template <int count>
inline Ints without_low_bits(Ints a) {
  return _mm256_srli_epi32(a, count);
}
inline Vec powers_of_two(const std::uint8_t* exponents) {
  const Ints wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(exponents)));
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(wide, 23), _mm256_set1_epi32(0x00400000)));
}
#endif

// Two neighbours in k of some outputs, as a panel has them.
inline void store_neighbours(float* to, Vec even, Vec odd) {
  store(to, even);
  store(to + panel_width, odd);
}
#ifdef TSK_DOT_BF16
inline void store_neighbours(bf16* to, Vec even, Vec odd) {
  // bf16 has all the bits that such a value has.
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
  const __m512i high = _mm512_and_si512(_mm512_castps_si512(odd), _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  _mm512_storeu_si512(to, _mm512_or_si512(low, high));
}
#endif

// A group's values, [32 k][32] or of bf16 [16][32][2].
template <class Packed>
inline void dequantize_mxfp4(const std::uint8_t* group, Packed* to) {
  constexpr int together = sizeof(float) / sizeof(Packed);  // k that lie beside each other
#pragma GCC unroll 4
  for (int v = 0; v < panel_vectors; ++v) {
    const Vec scale = powers_of_two(group + v * lanes);
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) {
      const Ints codes = load_bytes(group + panel_width + step * mxfp4_step_bytes + v * lanes * 4);
      const auto two = [&]<int j>() {
        // Of k = j and j + 1, then of those after 4.
        Packed* at = to + (8 * step + j) * panel_width + v * lanes * together;
        store_neighbours(at, e2m1_values(without_low_bits<8 * j>(codes)) * scale,
                         e2m1_values(without_low_bits<8 * j + 8>(codes)) * scale);
        store_neighbours(at + 4 * panel_width, e2m1_values(without_low_bits<8 * j + 4>(codes)) * scale,
                         e2m1_values(without_low_bits<8 * j + 12>(codes)) * scale);
      };
      two.template operator()<0>();
      two.template operator()<2>();
    }
  }
}

// The values are those of the codes, exactly, and are multiplied in the order of k: a product has the bits that it has
// with panels of what the codes stand for.
template <class Element>
class Mxfp4Panels {
 public:
  using Weight = Element;
  using Packed = typename Packing<Weight>::Element;
  static constexpr bool is_widened = true;

  static std::int64_t panels(const Tensor& stacked, std::int64_t K) { return stacked.sizes[1] / panel_bytes(K); }
  static std::int64_t inputs(const Tensor& stacked, std::int64_t panels) {
    return stacked.sizes[1] / panels / mxfp4_group_bytes * group_inputs;
  }

  Mxfp4Panels(const Tensor& stacked, std::int64_t expert, std::int64_t panel, std::int64_t K)
      : data_(stacked.at<const std::uint8_t>(expert) + panel * panel_bytes(K)), K_(K) {}

  template <int rows, int panels>
  void add(const Packed* x, Sums<rows, panels>& sums) const {
    constexpr std::int64_t tile = tile_groups * group_inputs * panel_width;
    alignas(64) Packed tiles[panels * tile];
    for (std::int64_t k = 0; k < K_; k += tile_groups * group_inputs) {
      const std::int64_t count = smaller(tile_groups * group_inputs, K_ - k);
      for (int p = 0; p < panels; ++p) dequantize(data_ + p * panel_bytes(K_), k, count, tiles + p * tile);
      add_product(x + k * rows, tiles, tile, count, sums);
    }
  }

  template <class Function>
  void widened(std::int64_t num_blocks, Packed* wide, const Function& f) const {
    if (num_blocks < fewest_blocks || K_ > widest_panel) return f(*this);
    dequantize(data_, 0, K_, wide);
    f(WholePanels<Packed>(wide, K_));
  }

 private:
  static constexpr std::int64_t group_inputs = 32, tile_groups = 2;
  static std::int64_t panel_bytes(std::int64_t K) { return K / group_inputs * mxfp4_group_bytes; }
  static void dequantize(const std::uint8_t* panel, std::int64_t first, std::int64_t count, Packed* to) {
    for (std::int64_t k = first; k < first + count; k += group_inputs)
      dequantize_mxfp4(panel + k / group_inputs * mxfp4_group_bytes, to + (k - first) * panel_width);
  }

  const std::uint8_t* data_;
  std::int64_t K_;
};
