// Codes of up to 8 bits, four to a lane, beside what bytes.hpp has: products, and from and to floats. Included inside
// an instruction set's namespace.

#if TSK_LANES == 16
inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
// a | (b & mask)
inline Ints with_bits(Ints a, Ints b, Ints mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xf8); }
// To the left, or by a negative count to the right; within 16 bits, so that bits of a neighbour have to be masked.
template <int count>
inline Ints shifted(Ints a) {
  if constexpr (count > 0) return _mm512_slli_epi16(a, count);
  if constexpr (count < 0) return _mm512_srli_epi16(a, -count);
  return a;
}
// Of codes below 16, what a table has for each.
inline Ints looked_up(const std::uint8_t* table, Ints codes) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table))), codes);
}

// sum += for each lane the products of four codes of x with those of a weight, which are unsigned.
template <int bits>
inline Ints add_products(Ints sum, Ints w, Ints x) {
  return _mm512_dpbusd_epi32(sum, w, x);
}
// What `add_products` takes more than the weights' signed values where they are stored with this offset.
template <int bits>
constexpr int offset_left(int offset) {
  return offset;
}

inline Vec from_unsigned_bytes(const std::uint8_t* from) {
  return to_floats(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline Vec from_signed_bytes(const std::uint8_t* from) {
  return to_floats(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline Vec from_halves(const std::uint8_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// By their bits: of all magnitudes NaN is the largest, then inf.
inline Vec larger_magnitude(Vec a, Vec b) {
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(absolute(a)), _mm512_castps_si512(absolute(b))));
}
inline float largest_magnitude(Vec a) {
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_set1_epi32(_mm512_reduce_max_epi32(_mm512_castps_si512(absolute(a))))));
}
// To the nearest, within 127 of zero.
inline Ints round_to_codes(Vec x) {
  return _mm512_min_epi32(_mm512_max_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(-127)), _mm512_set1_epi32(127));
}
inline void store_codes(std::int8_t* to, Ints codes) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(codes));
}
inline std::int32_t sum_ints(Ints a) { return _mm512_reduce_add_epi32(a); }

#else

inline Ints both(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints with_bits(Ints a, Ints b, Ints mask) { return _mm256_or_si256(a, _mm256_and_si256(b, mask)); }
template <int count>
inline Ints shifted(Ints a) {
  if constexpr (count > 0) return _mm256_slli_epi16(a, count);
  if constexpr (count < 0) return _mm256_srli_epi16(a, -count);
  return a;
}
inline Ints looked_up(const std::uint8_t* table, Ints codes) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table))),
                             codes);
}

// Pairs are added up in 16 bits, and saturate there. Codes of at most 7 bits cannot reach that; those of 8 bits cannot
// either once they are signed, as x is within 127: so their sign goes over to x.
template <int bits>
inline Ints add_products(Ints sum, Ints w, Ints x) {
  if constexpr (bits == 8) {
    const Ints value = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    x = _mm256_sign_epi8(x, value);
    w = _mm256_abs_epi8(value);
  }
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
template <int bits>
constexpr int offset_left(int offset) {
  return bits == 8 ? 0 : offset;
}

inline Vec from_unsigned_bytes(const std::uint8_t* from) {
  return to_floats(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
inline Vec from_signed_bytes(const std::uint8_t* from) {
  return to_floats(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
inline Vec from_halves(const std::uint8_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline Vec larger_magnitude(Vec a, Vec b) {
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(absolute(a)), _mm256_castps_si256(absolute(b))));
}
inline float largest_magnitude(Vec a) {
  const __m256i bits = _mm256_castps_si256(absolute(a));
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1))));
}
inline Ints round_to_codes(Vec x) {
  return _mm256_min_epi32(_mm256_max_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(-127)), _mm256_set1_epi32(127));
}
inline void store_codes(std::int8_t* to, Ints codes) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}
inline std::int32_t sum_ints(Ints a) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
#endif

// A value as it was rounded: the compiler may not put this product and a sum into one step.
inline float settled(float x) {
  asm("" : "+x"(x));
  return x;
}
