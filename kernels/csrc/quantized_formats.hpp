// How quantized weights are stored: the panels of tskernels/quantized.py. Included inside an instruction set's
// namespace.
//
// A panel of 32 outputs is a run of blocks along K; a block is a header, then its groups; a group is a header, then
// codes. What a header says of each output comes as arrays of 32. Codes are unsigned, for four k at a time [k / 4][32
// outputs][4].

constexpr int group_codes = 32;                       // k of a group, but where a block is one group
constexpr int quad_bytes = panel_width * 4;           // of codes of 8 bits, for four k
constexpr int code_vectors = 2;                       // that are computed side by side
constexpr std::int64_t half_bytes = panel_width * 2;  // an array of f16

// Codes of so many bits: vectors for the quads 2 * step and 2 * step + 1 of a group, from a vector of its outputs on.
// 4 bits: a byte is a code of either quad. 5: then 128 bytes hold a fifth bit, bit t of quad t. 6: then twice 128 bytes
// two bits, of quads t % 4 from bit 2 * (t % 4) on.
template <int bits>
struct Codes {
  static constexpr std::int64_t group_bytes = group_codes / 8 * quad_bytes + (bits - 4) * quad_bytes;

  template <int step, int n>
  static void load(const std::uint8_t* codes, int vector, Ints (&w)[2][n]) {
    constexpr int bytes = lanes * 4;
    const Ints low = broadcast_int(0x0f0f0f0f);
#pragma GCC unroll 4
    for (int v = 0; v < n; ++v) {
      const std::uint8_t* from = codes + (vector + v) * bytes;
      const Ints pair = load_bytes(from + step * quad_bytes);
      w[0][v] = both(pair, low);
      w[1][v] = both(shifted<-4>(pair), low);
      if constexpr (bits == 5) {
        const Ints high = load_bytes(from + 4 * quad_bytes), mask = broadcast_int(0x10101010);
        w[0][v] = with_bits(w[0][v], shifted<4 - 2 * step>(high), mask);
        w[1][v] = with_bits(w[1][v], shifted<3 - 2 * step>(high), mask);
      }
      if constexpr (bits == 6) {
        const Ints high = load_bytes(from + (4 + step / 2) * quad_bytes), mask = broadcast_int(0x30303030);
        w[0][v] = with_bits(w[0][v], shifted<step % 2 ? 0 : 4>(high), mask);
        w[1][v] = with_bits(w[1][v], shifted<step % 2 ? -2 : 2>(high), mask);
      }
    }
  }

  static int at(const std::uint8_t* codes, int output, int k) {
    const int quad = k / 4, place = output * 4 + k % 4;
    int code = codes[quad / 2 * quad_bytes + place] >> (quad % 2 * 4) & 15;
    if constexpr (bits == 5) code |= (codes[4 * quad_bytes + place] >> quad & 1) << 4;
    if constexpr (bits == 6) code |= (codes[(4 + quad / 4) * quad_bytes + place] >> (quad % 4 * 2) & 3) << 4;
    return code;
  }
};

template <>
struct Codes<8> {
  static constexpr std::int64_t group_bytes = group_codes / 4 * quad_bytes;

  template <int step, int n>
  static void load(const std::uint8_t* codes, int vector, Ints (&w)[2][n]) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
      for (int v = 0; v < n; ++v)
        w[half][v] = load_bytes(codes + (2 * step + half) * quad_bytes + (vector + v) * lanes * 4);
  }

  static int at(const std::uint8_t* codes, int output, std::int64_t k) {
    return codes[k / 4 * quad_bytes + output * 4 + k % 4];
  }
};

// Codes of 4 bits, each of which names one of 16 values: IQ4_NL's, plus 128. To a product they are bytes.
alignas(16) constexpr std::uint8_t table_values[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                       129, 141, 153, 166, 181, 197, 217, 241};

struct TableCodes {
  static constexpr std::int64_t group_bytes = Codes<4>::group_bytes;

  template <int step, int n>
  static void load(const std::uint8_t* codes, int vector, Ints (&w)[2][n]) {
    Codes<4>::load<step>(codes, vector, w);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
      for (int v = 0; v < n; ++v) w[half][v] = looked_up(table_values, w[half][v]);
  }

  static int at(const std::uint8_t* codes, int output, int k) { return table_values[Codes<4>::at(codes, output, k)]; }
};

// What scales and shifts codes. `subgroups` of a group have a scale each; `load` gives those of the outputs from a
// vector on, and what is added to each weight where `has_min`; `value` is a weight exactly as the layout defines it.

inline Vec load_f32(const std::uint8_t* from) { return load(reinterpret_cast<const float*>(from)); }

inline float float_at(const std::uint8_t* from, int index) {
  float value;
  std::memcpy(&value, from + index * 4, sizeof value);
  return value;
}

// One f32 for an output, and activations with one scale a token.
struct ChannelScale {
  static constexpr int groups = 0, subgroups = 1;  // 0: all of K is one group
  static constexpr bool has_min = false;
  static constexpr std::int64_t block_bytes = panel_width * 4, group_bytes = 0;

  template <int n>
  static void load(const std::uint8_t* block, const std::uint8_t*, int vector, Vec (&scale)[1][n], Vec*) {
    for (int v = 0; v < n; ++v) scale[0][v] = load_f32(block + (vector + v) * lanes * 4);
  }
  static float value(const std::uint8_t* block, const std::uint8_t*, int output, int, int code) {
    return float_at(block, output) * static_cast<float>(code);
  }
};

// d * (code - zero), both of so many groups.
template <int block_groups>
struct ScaleZero {
  static constexpr int groups = block_groups, subgroups = 1;
  static constexpr bool has_min = true;
  static constexpr std::int64_t block_bytes = panel_width * 5, group_bytes = 0;

  template <int n>
  static void load(const std::uint8_t* block, const std::uint8_t*, int vector, Vec (&scale)[1][n], Vec* min) {
    for (int v = 0; v < n; ++v) {
      const int output = (vector + v) * lanes;
      scale[0][v] = load_f32(block + output * 4);
      min[v] = zero() - scale[0][v] * from_signed_bytes(block + panel_width * 4 + output);
    }
  }
  static float value(const std::uint8_t* block, const std::uint8_t*, int output, int, int code) {
    const auto zero_point = static_cast<std::int8_t>(block[panel_width * 4 + output]);
    return float_at(block, output) * static_cast<float>(code - zero_point);
  }
};

inline float half_at(const std::uint8_t* from, int index) {
  std::uint16_t bits;
  std::memcpy(&bits, from + index * 2, sizeof bits);
  return _cvtsh_ss(bits);
}

// d * code
struct HalfScale {
  static constexpr int groups = 1, subgroups = 1;
  static constexpr bool has_min = false;
  static constexpr std::int64_t block_bytes = 0, group_bytes = half_bytes;

  template <int n>
  static void load(const std::uint8_t*, const std::uint8_t* group, int vector, Vec (&scale)[1][n], Vec*) {
    for (int v = 0; v < n; ++v) scale[0][v] = from_halves(group + (vector + v) * lanes * 2);
  }
  static float value(const std::uint8_t*, const std::uint8_t* group, int output, int, int code) {
    return half_at(group, output) * static_cast<float>(code);
  }
};

// d * code + m
struct HalfScaleMin {
  static constexpr int groups = 1, subgroups = 1;
  static constexpr bool has_min = true;
  static constexpr std::int64_t block_bytes = 0, group_bytes = 2 * half_bytes;

  template <int n>
  static void load(const std::uint8_t*, const std::uint8_t* group, int vector, Vec (&scale)[1][n], Vec* min) {
    for (int v = 0; v < n; ++v) {
      scale[0][v] = from_halves(group + (vector + v) * lanes * 2);
      min[v] = from_halves(group + half_bytes + (vector + v) * lanes * 2);
    }
  }
  static float value(const std::uint8_t*, const std::uint8_t* group, int output, int, int code) {
    return settled(half_at(group, output) * static_cast<float>(code)) + half_at(group + half_bytes, output);
  }
};

// d * scale * code - dmin * min, d and dmin of 256 weights.
struct SuperScaleMin {
  static constexpr int groups = 8, subgroups = 1;
  static constexpr bool has_min = true;
  static constexpr std::int64_t block_bytes = 2 * half_bytes, group_bytes = 2 * panel_width;

  template <int n>
  static void load(const std::uint8_t* block, const std::uint8_t* group, int vector, Vec (&scale)[1][n], Vec* min) {
    for (int v = 0; v < n; ++v) {
      const int output = (vector + v) * lanes;
      scale[0][v] = from_halves(block + output * 2) * from_unsigned_bytes(group + output);
      min[v] =
          zero() - from_halves(block + half_bytes + output * 2) * from_unsigned_bytes(group + panel_width + output);
    }
  }
  static float value(const std::uint8_t* block, const std::uint8_t* group, int output, int, int code) {
    const float scale = settled(half_at(block, output) * static_cast<float>(group[output]));
    const float min = settled(half_at(block + half_bytes, output) * static_cast<float>(group[panel_width + output]));
    return settled(scale * static_cast<float>(code)) - min;
  }
};

// d * scale * code, d of 256 weights and a scale of 32 or 16.
template <int group_scales>
struct SuperScale {
  static constexpr int groups = 8, subgroups = group_scales;
  static constexpr bool has_min = false;
  static constexpr std::int64_t block_bytes = half_bytes, group_bytes = subgroups * panel_width;

  template <int n>
  static void load(const std::uint8_t* block, const std::uint8_t* group, int vector, Vec (&scale)[subgroups][n], Vec*) {
    for (int v = 0; v < n; ++v) {
      const int output = (vector + v) * lanes;
      for (int s = 0; s < subgroups; ++s)
        scale[s][v] = from_halves(block + output * 2) * from_signed_bytes(group + s * panel_width + output);
    }
  }
  static float value(const std::uint8_t* block, const std::uint8_t* group, int output, int subgroup, int code) {
    const auto scale = static_cast<std::int8_t>(group[subgroup * panel_width + output]);
    return settled(half_at(block, output) * static_cast<float>(scale)) * static_cast<float>(code);
  }
};

// bits: of a code as a product takes it; Stored: what loads it.
template <int code_bits, int code_offset, class Scaling, class StoredCodes = Codes<code_bits>>
struct Format {
  static constexpr int bits = code_bits, offset = code_offset, subgroups = Scaling::subgroups;
  static constexpr bool by_groups = Scaling::groups > 0;
  using Scales = Scaling;
  using Stored = StoredCodes;

  // K as it is stored.
  static constexpr std::int64_t padded(std::int64_t K) {
    const std::int64_t unit = by_groups ? Scaling::groups * group_codes : 8;
    return (K + unit - 1) / unit * unit;
  }
  static constexpr std::int64_t num_groups(std::int64_t K) { return by_groups ? padded(K) / group_codes : 1; }
  static constexpr std::int64_t group_bytes = Scaling::group_bytes + Stored::group_bytes;
  static constexpr std::int64_t block_bytes = Scaling::block_bytes + Scaling::groups * group_bytes;
  static constexpr std::int64_t panel_bytes(std::int64_t K) {
    if (!by_groups) return Scaling::block_bytes + padded(K) / 4 * quad_bytes;
    return num_groups(K) / Scaling::groups * block_bytes;
  }
};

using Int8 = Format<8, 128, ChannelScale>;
using Int4 = Format<4, 0, HalfScaleMin>;
using Q8_0 = Format<8, 128, HalfScale>;
using Q4_0 = Format<4, 8, HalfScale>;
using Q4_1 = Format<4, 0, HalfScaleMin>;
using Q5_0 = Format<5, 16, HalfScale>;
using Q4_K = Format<4, 0, SuperScaleMin>;
using Q5_K = Format<5, 0, SuperScaleMin>;
using Q6_K = Format<6, 32, SuperScale<2>>;
using Q5_1 = Format<5, 0, HalfScaleMin>;
using Q3_K = Format<4, 4, SuperScale<2>>;
using IQ4_NL = Format<8, 128, HalfScale, TableCodes>;
using IQ4_XS = Format<8, 128, SuperScale<1>, TableCodes>;
using Affine4_32 = Format<4, 8, ScaleZero<1>>;
using Affine4_128 = Format<4, 8, ScaleZero<4>>;
using Affine8_32 = Format<8, 128, ScaleZero<1>>;
