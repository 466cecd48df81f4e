// Squares of as many vectors as a vector has lanes. Included inside an instruction set's namespace.

// The columns of each row become vectors.
inline void transpose(Vec (&tile)[lanes]) {
#if TSK_LANES == 16
  Vec pairs[lanes], fours[lanes];
  for (int i = 0; i < lanes; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(tile[i], tile[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(tile[i], tile[i + 1]);
  }
  const auto join = [](Vec low, Vec high, bool upper) {
    const __m512d a = _mm512_castps_pd(low), b = _mm512_castps_pd(high);
    return _mm512_castpd_ps(upper ? _mm512_unpackhi_pd(a, b) : _mm512_unpacklo_pd(a, b));
  };
  for (int i = 0; i < lanes; i += 4) {
    fours[i] = join(pairs[i], pairs[i + 2], false);
    fours[i + 1] = join(pairs[i], pairs[i + 2], true);
    fours[i + 2] = join(pairs[i + 1], pairs[i + 3], false);
    fours[i + 3] = join(pairs[i + 1], pairs[i + 3], true);
  }
  for (int c = 0; c < 4; ++c) {
    const Vec even_low = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0x88),
              odd_low = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0xdd);
    const Vec even_high = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0x88);
    const Vec odd_high = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0xdd);
    tile[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    tile[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    tile[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    tile[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
#else
  Vec pairs[lanes];
  for (int i = 0; i < lanes; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(tile[i], tile[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(tile[i], tile[i + 1]);
  }
  for (int c = 0; c < 4; ++c) {
    const auto join = [&](int first) {
      const Vec low = pairs[first + c / 2], high = pairs[first + 2 + c / 2];
      return c % 2 ? _mm256_shuffle_ps(low, high, 0xee) : _mm256_shuffle_ps(low, high, 0x44);
    };
    const Vec upper = join(0), lower = join(4);
    tile[c] = _mm256_permute2f128_ps(upper, lower, 0x20);
    tile[4 + c] = _mm256_permute2f128_ps(upper, lower, 0x31);
  }
#endif
}
