// Eight f32 at once, and what they are loaded from and stored to. Included inside an instruction set's namespace.

using Vec = __m256;
constexpr int lanes = 8;

// A stream of weights is asked for so far ahead: what the processor does by itself ends at the end of a page.
constexpr std::int64_t bytes_ahead = 2048;
inline void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec minimum(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec divide(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec absolute(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Vec round_to_integer(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline Vec from_bf16(__m128i half) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)); }
inline Vec load(const float* from) { return _mm256_loadu_ps(from); }
inline Vec load(const bf16* from) { return from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first `count` of 8; zeros after them, which are not read.
inline Vec load_part(const float* from, int count) { return _mm256_maskload_ps(from, first_lanes(count)); }
inline Vec load_part(const bf16* from, int count) {
  bf16 whole[lanes] = {};
  std::memcpy(whole, from, count * sizeof(bf16));
  return load(whole);
}

inline __m128i to_bf16(Vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256(chosen, 1));
}
inline void store(float* to, Vec x) { _mm256_storeu_ps(to, x); }
inline void store(bf16* to, Vec x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), to_bf16(x)); }
inline void store_part(float* to, Vec x, int count) { _mm256_maskstore_ps(to, first_lanes(count), x); }
inline void store_part(bf16* to, Vec x, int count) {
  bf16 whole[lanes];
  store(whole, x);
  std::memcpy(to, whole, count * sizeof(bf16));
}

// Two neighbours a lane, as `[..][2]` of bf16: the even and the odd ones.
struct Pair {
  Vec even, odd;
};
inline Vec load_even(const bf16* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), 16));
}
inline Vec load_odd(const bf16* from) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(0xffff0000)));
}
inline Pair load_pairs(const bf16* from) { return {load_even(from), load_odd(from)}; }

// A fixed tree, whatever the compiler would choose.
inline float sum(Vec x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Vec x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// x * 2^n for whole n, in two halves, so that neither leaves the range of normal numbers.
inline Vec times_power_of_two(Vec x, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const Vec a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const Vec b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return x * a * b;
}
inline bool any_equal(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)) != 0; }
inline unsigned nan_lanes(Vec a) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
// NaN is one of them.
inline unsigned nonzero_lanes(Vec a) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, zero(), _CMP_NEQ_UQ)));
}
// x where test < limit, else y.
inline Vec where_less(Vec test, Vec limit, Vec x, Vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(test, limit, _CMP_LT_OQ));
}
inline Vec with_sign_of(Vec magnitude, Vec sign) {
  const __m256 mask = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(mask, magnitude), _mm256_and_ps(mask, sign));
}
