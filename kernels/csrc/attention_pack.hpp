// How keys and values come out of the pages and into products. Included inside an instruction set's namespace.

// Keys are taken in spans of so many, at the positions 0, 256, ...: what a span gives to a row does not depend on what
// else is computed.
constexpr int span_keys = 256;

struct Range {
  int begin, end;
  bool empty() const { return end <= begin; }
};

// The panels of a span that hold these keys, in keys.
inline Range whole_panels(Range keys) {
  return {keys.begin / panel_width * panel_width, (keys.end + panel_width - 1) / panel_width * panel_width};
}

// Elements of a key that are packed at a time, a vector of each key. bf16 go in pairs and codes in
// fours, which are 32 bits as an f32 is.
template <class Element>
constexpr int tile_elements = lanes * (sizeof(float) / sizeof(Element));

// Elements e to at most e + tile_elements of the keys at `rows`, as a panel has them from element e on.
template <class Element>
inline void pack_tile(const Element* const* rows, std::int64_t e, std::int64_t width, Element* panel) {
  constexpr int unit = sizeof(float) / sizeof(Element);
  auto* to = reinterpret_cast<float*>(panel);
#pragma GCC unroll 4
  for (int first = 0; first < panel_width; first += lanes) {
    Vec tile[lanes];
    if (e + tile_elements<Element> <= width) {
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) tile[i] = load(reinterpret_cast<const float*>(rows[first + i] + e));
      transpose(tile);
#pragma GCC unroll 16
      for (int u = 0; u < lanes; ++u) store(to + u * panel_width + first, tile[u]);
    } else {
      for (int i = 0; i < lanes; ++i) {
        float part[lanes] = {};
        std::memcpy(part, rows[first + i] + e, (width - e) * sizeof(Element));
        tile[i] = load(part);
      }
      transpose(tile);
      for (int u = 0; e + u * unit < width; ++u) store(to + u * panel_width + first, tile[u]);
    }
  }
}

template <class Element>
void pack_keys(const Element* const* rows, std::int64_t width, Element* panel) {
  for (std::int64_t e = 0; e < width; e += tile_elements<Element>) pack_tile(rows, e, width, panel + e * panel_width);
}

// The type that a product's operands have where both are packed for many uses, and of softmax weights.
template <class Element>
using Packed = typename Packing<Element>::Element;

// The panel as products with many rows read it; `panel` is a place of the same elements to make it from.
template <class Element>
void pack_keys(const Element* const* rows, std::int64_t width, [[maybe_unused]] Element* panel,
               Packed<Element>* packed) {
  if constexpr (sizeof(Element) == sizeof(Packed<Element>)) {
    pack_keys(rows, width, packed);
  } else {
    pack_keys(rows, width, panel);
    widen_panel(panel, padded<Element>(width), packed);
  }
}

// So many columns from `column` on of the value of a key, or with bf16 products of two keys, in the order of lanes.
template <bool part, class Element>
inline Vec load_columns(const Element* from, std::int64_t left) {
  if constexpr (part)
    return load_part(from, static_cast<int>(left < 0 ? 0 : left < lanes ? left : lanes));
  else
    return load(from);
}

template <class Weight>
constexpr int keys_at_once = sizeof(Weight) == 2 ? 2 : 1;

inline Vec load_value(const float* packed) { return load(packed); }
template <class Weight, bool part, class Element>
  requires(sizeof(Weight) == 4)
inline Vec load_value(const Element* const* rows, std::int64_t column, std::int64_t left) {
  return load_columns<part>(rows[0] + column, left);
}
inline Vec add_value(const float* weight, Vec value, Vec sum) { return fma(broadcast(*weight), value, sum); }
inline void store_value(float* to, Vec value) { store(to, value); }

#ifdef TSK_DOT_BF16
inline __m512i load_value(const bf16* packed) { return _mm512_loadu_si512(packed); }
template <class Weight, bool part>
  requires(sizeof(Weight) == 2)
inline __m512i load_value(const bf16* const* rows, std::int64_t column, std::int64_t left) {
  const __m512i even = _mm512_castps_si512(load_columns<part>(rows[0] + column, left));
  return _mm512_or_si512(_mm512_srli_epi32(even, 16), _mm512_castps_si512(load_columns<part>(rows[1] + column, left)));
}
inline Vec add_value(const bf16* weight, __m512i value, Vec sum) {
  std::int32_t both;
  std::memcpy(&both, weight, sizeof both);
  return _mm512_dpbf16_ps(sum, (__m512bh)value, (__m512bh)_mm512_set1_epi32(both));
}
inline void store_value(bf16* to, __m512i value) { _mm512_storeu_si512(to, value); }
#endif

// Panels of 32 columns of the values of these keys, [keys][32] or [keys / 2][32][2], `apart` from each other.
template <class Element>
void pack_values(const Element* const* rows, std::int64_t offset, Range keys, std::int64_t width, std::int64_t apart,
                 Packed<Element>* panels) {
  using Weight = Packed<Element>;
  constexpr int step = keys_at_once<Weight>;
  const std::int64_t columns = (width + panel_width - 1) / panel_width * panel_width;
  for (int key = keys.begin / step * step; key < keys.end; key += step)
    for (std::int64_t column = 0; column < columns; column += lanes) {
      Weight* to = panels + column / panel_width * apart + key * panel_width + column % panel_width * step;
      if (column + lanes <= width)
        store_value(to, load_value<Weight, false>(rows + key, offset + column, lanes));
      else
        store_value(to, load_value<Weight, true>(rows + key, offset + column, width - column));
    }
}
