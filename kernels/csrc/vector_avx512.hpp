// Sixteen f32 at once, and what they are loaded from and stored to. Included inside an instruction set's namespace.

using Vec = __m512;
constexpr int lanes = 16;

// A stream of weights is asked for so far ahead: what the processor does by itself ends at the end of a page.
constexpr std::int64_t bytes_ahead = 2048;
inline void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec minimum(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec absolute(Vec a) { return _mm512_abs_ps(a); }
inline Vec round_to_integer(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
inline Vec load(const bf16* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }
// The first `count` of 16; zeros after them, which are not read.
inline Vec load_part(const float* from, int count) { return _mm512_maskz_loadu_ps(first_lanes(count), from); }
inline Vec load_part(const bf16* from, int count) {
  const __m256i half = _mm256_maskz_loadu_epi16(first_lanes(count), from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __m256i to_bf16(Vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
}
inline void store(float* to, Vec x) { _mm512_storeu_ps(to, x); }
inline void store(bf16* to, Vec x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bf16(x)); }
inline void store_part(float* to, Vec x, int count) { _mm512_mask_storeu_ps(to, first_lanes(count), x); }
inline void store_part(bf16* to, Vec x, int count) { _mm256_mask_storeu_epi16(to, first_lanes(count), to_bf16(x)); }

// Two neighbours a lane, as `[..][2]` of bf16: the even and the odd ones.
struct Pair {
  Vec even, odd;
};
inline Vec load_even(const bf16* from) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(from), 16)); }
inline Vec load_odd(const bf16* from) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(from), _mm512_set1_epi32(0xffff0000)));
}
inline Pair load_pairs(const bf16* from) { return {load_even(from), load_odd(from)}; }

// A fixed tree, whatever the compiler would choose.
inline float sum(Vec x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Vec x) { return _mm512_reduce_max_ps(x); }

// x * 2^n for whole n, through the exponent; n is within the range of normal numbers twice over.
inline Vec times_power_of_two(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
inline bool any_equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0; }
inline unsigned nan_lanes(Vec a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
// NaN is one of them.
inline unsigned nonzero_lanes(Vec a) { return _mm512_cmp_ps_mask(a, zero(), _CMP_NEQ_UQ); }
// x where test < limit, else y.
inline Vec where_less(Vec test, Vec limit, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(test, limit, _CMP_LT_OQ), y, x);
}
inline Vec with_sign_of(Vec magnitude, Vec sign) {
  const __m512 mask = _mm512_castsi512_ps(_mm512_set1_epi32(0x80000000));
  return _mm512_or_ps(_mm512_andnot_ps(mask, magnitude), _mm512_and_ps(mask, sign));
}
