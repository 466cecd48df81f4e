// Sums of products of bytes, exact: four neighbours of k in each 32-bit lane. Included inside an instruction set's
// namespace.

#if TSK_LANES == 16
using Ints = __m512i;
inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Ints load_bytes(const std::uint8_t* from) { return _mm512_loadu_si512(from); }
inline Ints broadcast_int(std::int32_t x) { return _mm512_set1_epi32(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Vec to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
// sums + unsigned w times signed x; x is the same four bytes in each lane.
inline Ints add_byte_products(Ints sums, Ints w, std::int32_t x) {
  return _mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(x));
}
#else
using Ints = __m256i;
inline Ints no_ints() { return _mm256_setzero_si256(); }
inline Ints load_bytes(const std::uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Ints broadcast_int(std::int32_t x) { return _mm256_set1_epi32(x); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Vec to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
// As pairs of 16 bits, since the instruction for bytes saturates.
inline Ints add_byte_products(Ints sums, Ints w, std::int32_t x) {
  const __m256i both = _mm256_set1_epi32(x);
  const __m256i even = _mm256_and_si256(w, _mm256_set1_epi16(0xff)), odd = _mm256_srli_epi16(w, 8);
  const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8), x_odd = _mm256_srai_epi16(both, 8);
  return _mm256_add_epi32(_mm256_add_epi32(sums, _mm256_madd_epi16(even, x_even)), _mm256_madd_epi16(odd, x_odd));
}
#endif
