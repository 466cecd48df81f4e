// Panels of keys in bytes, which each type of byte says how to widen (`load_code`). Included inside an instruction
// set's namespace.

// As of other panels, which are [K / 4][32][4] here: x is multiplied by what the bytes are, which is exact.
template <int rows, int panels, class Byte>
  requires(sizeof(Byte) == 1)
inline void add_product(const float* x, const Byte* panel, std::int64_t apart, std::int64_t K,
                        Sums<rows, panels>& sums) {
  Sums<rows, panels> own = sums;
  for (std::int64_t k = 0; k < K; k += 4, x += 4 * rows, panel += 4 * panel_width) {
    const auto add = [&]<int index>() {
      Vec w[panels * panel_vectors];
#pragma GCC unroll 8
      for (int j = 0; j < panels * panel_vectors; ++j)
        w[j] = load_code<index>(panel + j / panel_vectors * apart + j % panel_vectors * 4 * lanes);
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        const Vec value = broadcast(x[index * rows + r]);
#pragma GCC unroll 8
        for (int j = 0; j < panels * panel_vectors; ++j) own.at[r][j] = fma(value, w[j], own.at[r][j]);
      }
    };
    add.template operator()<0>();
    add.template operator()<1>();
    add.template operator()<2>();
    add.template operator()<3>();
  }
  sums = own;
}

// A panel of bytes as one of floats.
template <class Byte>
  requires(sizeof(Byte) == 1)
void widen_panel(const Byte* panel, std::int64_t K, float* wide) {
  for (std::int64_t k = 0; k < K; k += 4, panel += 4 * panel_width, wide += 4 * panel_width)
    for (int j = 0; j < panel_vectors; ++j) {
      const Byte* fours = panel + j * 4 * lanes;
      store(wide + j * lanes, load_code<0>(fours));
      store(wide + panel_width + j * lanes, load_code<1>(fours));
      store(wide + 2 * panel_width + j * lanes, load_code<2>(fours));
      store(wide + 3 * panel_width + j * lanes, load_code<3>(fours));
    }
}
