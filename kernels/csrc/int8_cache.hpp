// A cache of keys and values in bytes, and how it is written. Included inside an instruction set's namespace.
//
// A vector, the key or the value of one token and head, is a code for each element and one scale, 1/127 of its largest
// magnitude: what is stored follows from the vector alone. A page has the codes of its rows, [page_size][2][K][E],
// and then the scales, f32[2][K][page_size]: so vectors of codes are as aligned as their width is, and the scales of a
// head's keys lie side by side.

using Code = std::int8_t;

inline Vec load(const Code* from) { return from_signed_bytes(reinterpret_cast<const std::uint8_t*>(from)); }
inline Vec load_part(const Code* from, int count) {
  Code whole[lanes] = {};
  std::memcpy(whole, from, count);
  return load(whole);
}

// One of the four codes that each lane of a panel has.
#if TSK_LANES == 16
template <int index>
inline Vec load_code(const Code* fours) {
  const Ints codes = _mm512_loadu_si512(fours);
  return to_floats(_mm512_srai_epi32(index < 3 ? _mm512_slli_epi32(codes, 24 - 8 * index) : codes, 24));
}
#else
template <int index>
inline Vec load_code(const Code* fours) {
  const Ints codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(fours));
  return to_floats(_mm256_srai_epi32(index < 3 ? _mm256_slli_epi32(codes, 24 - 8 * index) : codes, 24));
}
#endif

// Writes the codes of a vector, and gives its scale. A vector that is not finite has no codes and the scale NaN, so
// that whoever reads it finds out; of one that is smaller than scales can be nothing is left.
template <class Element>
float quantize_vector(const Element* from, std::int64_t width, Code* codes) {
  constexpr float smallest = 1.1754943508222875e-38f, largest_finite = 3.4028234663852886e38f;
  Vec most = zero();
  const auto elements = [&](std::int64_t e) {
    return e + lanes <= width ? load(from + e) : load_part(from + e, static_cast<int>(width - e));
  };
  for (std::int64_t e = 0; e < width; e += lanes) most = larger_magnitude(elements(e), most);
  const float magnitude = largest_magnitude(most), scale = magnitude / 127;
  if (!(magnitude <= largest_finite) || scale < smallest) {
    std::memset(codes, 0, width);
    return magnitude <= largest_finite ? 0 : __builtin_nanf("");
  }
  for (std::int64_t e = 0; e < width; e += lanes) {
    const Ints rounded = round_to_codes(divide(elements(e), broadcast(scale)));
    if (e + lanes <= width) {
      store_codes(codes + e, rounded);
    } else {
      Code whole[lanes];
      store_codes(whole, rounded);
      std::memcpy(codes + e, whole, width - e);
    }
  }
  return scale;
}

// (cache u8 [pages, page_size, 2 * K * (E + 4)], k, v [T, K, E], slots)
template <class Element>
void append_int8(const Call& call, const Worker& worker) {
  const Tensor &cache = call.operands[0], &slots = call.operands[3];
  const std::int64_t page_size = cache.sizes[1], heads = call.operands[1].sizes[1], width = call.operands[1].width();
  for (std::int64_t t = worker.first(slots.rows()); t < worker.last(slots.rows()); ++t) {
    const std::int64_t slot = *slots.at<const std::int32_t>(t), row = slot % page_size;
    std::byte* page = cache.data + slot / page_size * cache.strides[0];
    auto* codes = reinterpret_cast<Code*>(page) + row * 2 * heads * width;
    auto* scales = reinterpret_cast<float*>(page + page_size * 2 * heads * width) + row;
    for (int part = 0; part < 2; ++part)
      for (std::int64_t head = 0; head < heads; ++head, codes += width, scales += page_size) {
        const Tensor& given = call.operands[1 + part];
        *scales = quantize_vector(given.at<const Element>(t) + head * given.vector_stride(), width, codes);
      }
  }
}

inline void cache_append_int8(const Call& call, const Worker& worker) {
  if (call.operands[1].dtype == DType::bf16) return append_int8<bf16>(call, worker);
  append_int8<float>(call, worker);
}
