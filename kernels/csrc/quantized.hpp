// Products with quantized weights, and rows of a quantized table. Included inside an instruction set's namespace. Sums
// of integers are exact and groups are added up in the order of k, so a row of the result has the same bits in any
// company.

template <class Format>
std::int64_t quantized_scratch(const Call& call, int num_workers) {
  const Tensor& x = call.operands[0];
  const RowBlocks blocks(x.rows() * x.vectors());
  return QuantizedRows<Format>::bytes(x.width(), blocks.rows) * (blocks.count == 1 ? num_workers : blocks.count);
}

// The processor's own guess at what is read next leaves a tenth of the memory's rate unused. Many rows of groups
// compute for so long that it is in their way.
constexpr int fetched_ahead = 4096;

// All groups of a panel for a block of rows: the f32 that belong to the outputs from a vector on.
template <class Format, int rows, int n>
inline void panel_product(const QuantizedRows<Format>& x, const std::uint8_t* panel, std::int64_t K, int vector,
                          Vec (&total)[rows][n]) {
  using Scales = typename Format::Scales;
  constexpr int subgroups = Format::subgroups, steps = group_codes / 8 / subgroups;
  const std::int8_t* codes = x.codes;
  const auto add = [&]<int step>(const std::uint8_t* from, Ints(&sums)[rows][n]) {
    if constexpr (rows <= 2 || !Format::by_groups) {
      constexpr int step_bytes = Format::Stored::group_bytes / 4;
#pragma GCC unroll 4
      for (int line = 0; line < step_bytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(from + step * step_bytes + line + fetched_ahead), _MM_HINT_T0);
    }
    Ints w[2][n];
    Format::Stored::template load<step>(from, vector, w);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r, codes += 4) {
        std::int32_t quad;
        std::memcpy(&quad, codes, sizeof quad);
        const Ints value = broadcast_int(quad);
#pragma GCC unroll 4
        for (int v = 0; v < n; ++v) sums[r][v] = add_products<Format::bits>(sums[r][v], w[half][v], value);
      }
    }
  };
  const auto begin = [&](std::int64_t subgroup, Ints(&sums)[rows][n]) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < n; ++v) sums[r][v] = broadcast_int(Format::offset ? x.starts[subgroup * rows + r] : 0);
  };
  Vec scale[subgroups][n], min[n];
  if constexpr (!Format::by_groups) {
    Scales::load(panel, panel, vector, scale, min);
    Ints sums[rows][n];
    begin(0, sums);
    const std::uint8_t* from = panel + Scales::block_bytes;
    for (std::int64_t k = 0; k < Format::padded(K); k += 8, from += 2 * quad_bytes)
      add.template operator()<0>(from, sums);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < n; ++v) total[r][v] = to_floats(sums[r][v]) * scale[0][v] * broadcast(x.scales[r]);
    return;
  }
  const std::int64_t groups = Format::num_groups(K);
  const std::uint8_t* block = panel;
  for (std::int64_t group = 0; group < groups; block += Format::block_bytes) {
    const std::uint8_t* header = block + Scales::block_bytes;
    for (int g = 0; g < Scales::groups; ++g, ++group, header += Format::group_bytes) {
      Scales::load(block, header, vector, scale, min);
      const std::uint8_t* from = header + Scales::group_bytes;
      Vec partial[rows][n];
      const auto subgroup = [&]<int s>() {
        Ints sums[rows][n];
        begin(group * subgroups + s, sums);
        add.template operator()<s * steps>(from, sums);
        add.template operator()<s * steps + 1>(from, sums);
        if constexpr (steps == 4) {
          add.template operator()<2>(from, sums);
          add.template operator()<3>(from, sums);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < n; ++v)
            partial[r][v] =
                s == 0 ? to_floats(sums[r][v]) * scale[s][v] : fma(to_floats(sums[r][v]), scale[s][v], partial[r][v]);
      };
      subgroup.template operator()<0>();
      if constexpr (subgroups == 2) subgroup.template operator()<1>();
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const Vec factor = broadcast(x.scales[group * rows + r]);
#pragma GCC unroll 4
        for (int v = 0; v < n; ++v) {
          total[r][v] = fma(partial[r][v], factor, total[r][v]);
          if constexpr (Scales::has_min) total[r][v] = fma(min[v], broadcast(x.sums[group * rows + r]), total[r][v]);
        }
      }
    }
  }
}

// results [rows][32]; not part of the loop around it, so that what finishes a product is compiled once for all formats.
template <class Format, int rows>
[[gnu::noinline]] void multiply_panel(const QuantizedRows<Format>& x, const std::uint8_t* panel, std::int64_t K,
                                      float* results) {
  for (int vector = 0; vector < panel_vectors; vector += code_vectors) {
    Vec total[rows][code_vectors] = {};
    panel_product<Format, rows, code_vectors>(x, panel, K, vector, total);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < code_vectors; ++v) store(results + r * panel_width + (vector + v) * lanes, total[r][v]);
  }
}

// Takes a row of the results of a panel to where it belongs.
using Finish = void (*)(const Call&, std::int64_t row, std::int64_t panel, const float* results);

template <class Element>
void finish_linear(const Call& call, std::int64_t row, std::int64_t panel, const float* results) {
  const std::int64_t outputs = call.out.width();
  const auto* bias = call.num_operands > 2 ? call.operands[2].at<const Element>() : nullptr;
  Element* to = out_vector<Element>(call.out, row);
  for (int j = 0; j < panel_vectors; ++j) {
    const std::int64_t column = panel * panel_width + j * lanes;
    const int count = static_cast<int>(smaller(lanes, outputs - column));
    if (count <= 0) break;
    const Vec result = load(results + j * lanes);
    store_part(to + column, bias ? result + load_part(bias + column, count) : result, count);
  }
}

// Of each panel the first half are gates and the second what they gate.
template <class Element>
void finish_gated(const Call& call, std::int64_t row, std::int64_t panel, const float* results) {
  constexpr int half = panel_width / 2;
  Element* to = out_vector<Element>(call.out, row);
  with_activation(call.numbers[0], [&](auto activation) {
    for (int j = 0; j < half; j += lanes) {
      const std::int64_t column = panel * half + j;
      const int count = static_cast<int>(smaller(lanes, call.out.width() - column));
      if (count <= 0) break;
      store_part(to + column, activation(load(results + j)) * load(results + half + j), count);
    }
  });
}

// x in blocks. With one block every worker quantizes its own copy, which is cheaper than to wait for another.
template <class Format>
std::byte* quantize_rows(const Call& call, const RowBlocks& blocks, std::int64_t rows, const Worker& worker) {
  const Tensor& x = call.operands[0];
  const std::int64_t bytes = QuantizedRows<Format>::bytes(x.width(), blocks.rows);
  const auto quantize = [&](std::int64_t block, std::byte* at) {
    const QuantizedRows<Format> to(at, x.width(), blocks.rows);
    const int count = blocks.size(block, rows);
    if (x.dtype == DType::bf16)
      quantize_block<Format, bf16>(x, block * blocks.rows, count, blocks.rows, to);
    else
      quantize_block<Format, float>(x, block * blocks.rows, count, blocks.rows, to);
  };
  if (blocks.count == 1) {
    std::byte* own = call.scratch + worker.index * bytes;
    quantize(0, own);
    return own;
  }
  for (std::int64_t b = worker.first(blocks.count); b < worker.last(blocks.count); ++b)
    quantize(b, call.scratch + b * bytes);
  worker.barrier();
  return call.scratch;
}

template <class Format>
void multiply(const Call& call, const Worker& worker, std::int64_t panels, Finish finish) {
  const Tensor& x = call.operands[0];
  const std::int64_t rows = x.rows() * x.vectors(), K = x.width();
  if (rows == 0) return;
  const RowBlocks blocks(rows);
  std::byte* packed = quantize_rows<Format>(call, blocks, rows, worker);
  const auto* w = call.operands[1].at<const std::uint8_t>();
  const std::int64_t bytes = QuantizedRows<Format>::bytes(K, blocks.rows);
  alignas(64) float results[most_rows * panel_width];
  for_block_rows(blocks.rows, [&]<int block_rows>() {
    for (std::int64_t panel = worker.first(panels); panel < worker.last(panels); ++panel)
      for (std::int64_t b = 0; b < blocks.count; ++b) {
        const QuantizedRows<Format> activations(packed + b * bytes, K, blocks.rows);
        multiply_panel<Format, block_rows>(activations, w + panel * Format::panel_bytes(K), K, results);
        for (int r = 0; r < blocks.size(b, rows); ++r)
          finish(call, b * blocks.rows + r, panel, results + r * panel_width);
      }
  });
}

// (x, w, bias?)
template <class Format>
void linear_quantized(const Call& call, const Worker& worker) {
  const std::int64_t panels = (call.out.width() + panel_width - 1) / panel_width;
  multiply<Format>(call, worker, panels, call.out.dtype == DType::bf16 ? finish_linear<bf16> : finish_linear<float>);
}

// (x, w; activation)
template <class Format>
void gated_quantized(const Call& call, const Worker& worker) {
  const std::int64_t panels = (call.out.width() + panel_width / 2 - 1) / (panel_width / 2);
  multiply<Format>(call, worker, panels, call.out.dtype == DType::bf16 ? finish_gated<bf16> : finish_gated<float>);
}

template <class Format, class Element>
void dequantize_row(const std::uint8_t* table, std::int64_t row, std::int64_t K, Element* to) {
  using Scales = typename Format::Scales;
  const std::uint8_t* panel = table + row / panel_width * Format::panel_bytes(K);
  const int output = static_cast<int>(row % panel_width);
  if constexpr (!Format::by_groups) {
    const std::uint8_t* codes = panel + Scales::block_bytes;
    for (std::int64_t k = 0; k < K; ++k)
      narrow_to(Scales::value(panel, panel, output, 0, Format::Stored::at(codes, output, k) - Format::offset), to + k);
  } else {
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int64_t group = k / group_codes;
      const int within = static_cast<int>(k % group_codes);
      const std::uint8_t* block = panel + group / Scales::groups * Format::block_bytes;
      const std::uint8_t* header = block + Scales::block_bytes + group % Scales::groups * Format::group_bytes;
      const int code = Format::Stored::at(header + Scales::group_bytes, output, within) - Format::offset;
      narrow_to(Scales::value(block, header, output, within / (group_codes / Format::subgroups), code), to + k);
    }
  }
}

// (ids, table; shard; the table's rows as a constant)
template <class Format>
void embedding_quantized(const Call& call, const Worker& worker) {
  const auto* ids = call.operands[0].at<const std::int32_t>();
  const auto* table = call.operands[1].at<const std::uint8_t>();
  const auto shard = static_cast<std::int64_t>(call.numbers[0]), rows = static_cast<std::int64_t>(call.constants[0]);
  const std::int64_t K = call.out.width();
  for (std::int64_t t = worker.first(call.out.rows()); t < worker.last(call.out.rows()); ++t) {
    const std::int64_t row = ids[t] - shard * rows;
    const auto give = [&](auto* to) {
      if (row >= 0 && row < rows)
        dequantize_row<Format>(table, row, K, to);
      else
        std::memset(to, 0, K * sizeof *to);
    };
    if (call.out.dtype == DType::bf16)
      give(call.out.at<bf16>(t));
    else
      give(call.out.at<float>(t));
  }
}
