// A cache in e4m3: a byte an element, which stands for itself. Included inside an instruction set's namespace.
//
// Sign, exponent and mantissa of a byte become those of an f32, whose exponents begin 120 lower. Below the smallest
// exponent steps are even: these are made with a leading one, which is then taken off. So no f32 is ever subnormal,
// which processors are slow with.

#if TSK_LANES == 16
// Of the highest byte of each lane.
inline Vec widen_highest(Ints bytes) {
  const Ints size = _mm512_and_si512(_mm512_srli_epi32(bytes, 4), _mm512_set1_epi32(0x07f00000));
  const __mmask16 even = _mm512_cmplt_epi32_mask(size, _mm512_set1_epi32(1 << 23));
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(size, _mm512_set1_epi32(0x07f00000));
  Ints bits = _mm512_add_epi32(size, _mm512_set1_epi32(120 << 23));
  bits = _mm512_mask_add_epi32(bits, even, bits, _mm512_set1_epi32(1 << 23));
  Vec value = _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fc00000)));
  value = _mm512_mask_sub_ps(value, even, value, broadcast(0x1p-6f));
  return with_sign_of(value, _mm512_castsi512_ps(bytes));
}
inline Vec load(const e4m3* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return widen_highest(_mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 24));
}
// One of the four bytes that each lane of a panel has.
template <int index>
inline Vec load_code(const e4m3* fours) {
  return widen_highest(_mm512_slli_epi32(_mm512_loadu_si512(fours), 24 - 8 * index));
}
#else
inline Vec widen_highest(Ints bytes) {
  const Ints size = _mm256_and_si256(_mm256_srli_epi32(bytes, 4), _mm256_set1_epi32(0x07f00000));
  const Ints even = _mm256_cmpgt_epi32(_mm256_set1_epi32(1 << 23), size);
  const Ints nan = _mm256_cmpeq_epi32(size, _mm256_set1_epi32(0x07f00000));
  const Ints one = _mm256_and_si256(even, _mm256_set1_epi32(1 << 23));
  const Ints bits = _mm256_add_epi32(_mm256_add_epi32(size, _mm256_set1_epi32(120 << 23)), one);
  const Vec wide = _mm256_castsi256_ps(_mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc00000), nan));
  const Vec value = wide - _mm256_and_ps(_mm256_castsi256_ps(even), broadcast(0x1p-6f));
  return with_sign_of(value, _mm256_castsi256_ps(bytes));
}
inline Vec load(const e4m3* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return widen_highest(_mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 24));
}
template <int index>
inline Vec load_code(const e4m3* fours) {
  const Ints bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(fours));
  return widen_highest(_mm256_slli_epi32(bytes, 24 - 8 * index));
}
#endif
inline Vec load_part(const e4m3* from, int count) {
  e4m3 whole[lanes] = {};
  std::memcpy(whole, from, count);
  return load(whole);
}
