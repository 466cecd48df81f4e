// Products of two values over named dimensions: one product of matrices for each place in the dimension that all share.
// Included inside an instruction set's namespace. A row of the result has the same bits in any company.

// Rows that are packed at once.
constexpr std::int64_t einsum_rows = 240;

// Sizes and strides of x [batch, rows, K], y [batch, columns, K] and out [batch, rows, columns], whose dimensions lie
// in any order; K is the last of x, and columns that of out.
struct Einsum {
  std::int64_t batch, rows, columns, K;
  std::int64_t x_batch, x_row, y_batch, y_column, y_K, out_batch, out_row;
};

// (x, y; the dimensions that are batch and row of x; batch, column and K of y; batch and row of out; -1 where there is
// none)
inline Einsum einsum_of(const Call& call) {
  const Tensor &x = call.operands[0], &y = call.operands[1], &out = call.out;
  const auto dimension = [&](int number) { return static_cast<int>(call.numbers[number]); };
  const auto stride = [&](const Tensor& tensor, int number) {
    return dimension(number) < 0 ? 0 : tensor.strides[dimension(number)];
  };
  const auto size = [&](const Tensor& tensor, int number) {
    return dimension(number) < 0 ? 1 : tensor.sizes[dimension(number)];
  };
  return {size(x, 0),   size(x, 1),   out.width(),  x.width(),      stride(x, 0),  stride(x, 1),
          stride(y, 2), stride(y, 3), stride(y, 4), stride(out, 5), stride(out, 6)};
}

inline std::int64_t einsum_worker_bytes(const Einsum& problem) {
  return aligned(smaller(problem.rows, einsum_rows) * spread_elements<bf16>(problem.K) * sizeof(float));
}

inline std::int64_t einsum_scratch(const Call& call, int num_workers) {
  return einsum_worker_bytes(einsum_of(call)) * num_workers;
}

// Of few rows so many panels are made at once: what is read together of each row of y is then longer than a line of the
// cache.
constexpr int einsum_panels = 4;

// Sums of a block of rows for `columns` neighbours that lie side by side in y: whole panels, or a part of one.
template <int rows, int panels, class Element>
inline void add_columns(const float* x, const Element* y, std::int64_t y_stride, std::int64_t K, std::int64_t columns,
                        Sums<rows, panels>& sums) {
  const auto add = [&](const auto& load_vector) {
    for (std::int64_t k = 0; k < K; ++k, x += rows, y += y_stride) {
      Vec w[panels * panel_vectors];
#pragma GCC unroll 16
      for (int j = 0; j < panels * panel_vectors; ++j) w[j] = load_vector(j);
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        const Vec value = broadcast(x[r]);
#pragma GCC unroll 16
        for (int j = 0; j < panels * panel_vectors; ++j) sums.at[r][j] = fma(value, w[j], sums.at[r][j]);
      }
    }
  };
  if (columns == panels * panel_width) return add([&](int j) { return load(y + j * lanes); });
  if constexpr (panels == 1)
    add([&](int j) {
      const std::int64_t left = columns - j * lanes;
      return left > 0 ? load_part(y + j * lanes, static_cast<int>(smaller(lanes, left))) : zero();
    });
}

// Where columns lie side by side in y: each lane is one, as in a panel.
template <class Element>
void einsum_by_columns(const Einsum& problem, const Element* x, const Element* y, Element* out, std::int64_t rows,
                       std::int64_t first, std::int64_t last, float* packed) {
  const Blocks blocks(rows);
  for (std::int64_t b = 0; b < blocks.count; ++b) {
    RowsAt<Element> at = {};
    for (int r = 0; r < blocks.size(b); ++r) at[r] = x + (blocks.first(b) + r) * problem.x_row;
    pack_block<float, Element>(at, blocks.size(b), problem.K, packed + blocks.first(b) * problem.K);
  }
  const auto run = [&]<int panels>(std::int64_t column, std::int64_t columns) {
    for (std::int64_t b = 0; b < blocks.count; ++b)
      for_rows(blocks.size(b), [&]<int count>() {
        if constexpr (count * panels <= block_rows) {
          Sums<count, panels> sums = {};
          add_columns(packed + blocks.first(b) * problem.K, y + column, problem.y_K, problem.K, columns, sums);
          for (int r = 0; r < count; ++r)
            for (std::int64_t c = 0; c < columns; c += lanes)
              store_part(out + (blocks.first(b) + r) * problem.out_row + column + c, sums.at[r][c / lanes],
                         static_cast<int>(smaller(lanes, columns - c)));
        }
      });
  };
  constexpr std::int64_t wide = einsum_panels * panel_width;
  const std::int64_t end = smaller(last * panel_width, problem.columns);
  std::int64_t column = first * panel_width;
  if (blocks.count == 1 && einsum_panels * rows <= block_rows)
    for (; column + wide <= end; column += wide) run.template operator()<einsum_panels>(column, wide);
  for (; column < end; column += panel_width) run.template operator()<1>(column, smaller(panel_width, end - column));
}

// Where what is summed over lies side by side in y: as a weight by rows.
template <class Element>
void einsum_by_rows(const Einsum& problem, const Element* x, const Element* y, Element* out, std::int64_t rows,
                    std::int64_t first, std::int64_t last, float* spread) {
  for (std::int64_t r = 0; r < rows; ++r)
    spread_row<Element>(x + r * problem.x_row, problem.K, spread + r * spread_elements<Element>(problem.K));
  row_products(spread, rows, y, problem.y_column, problem.K, first, last,
               [&](std::int64_t row, std::int64_t column, float value) {
                 narrow_to(value, out + row * problem.out_row + column);
               });
}

template <class Element>
void einsum_in(const Call& call, const Worker& worker) {
  const Einsum problem = einsum_of(call);
  const bool by_columns = problem.y_column == 1;
  // What workers share out of each place in the batch: panels, or columns.
  const std::int64_t parts = by_columns ? (problem.columns + panel_width - 1) / panel_width : problem.columns;
  const std::int64_t begin = worker.first(problem.batch * parts), end = worker.last(problem.batch * parts);
  auto* own = reinterpret_cast<float*>(call.scratch + worker.index * einsum_worker_bytes(problem));
  for (std::int64_t at = begin; at < end;) {
    const std::int64_t batch = at / parts, first = at % parts, last = smaller(parts, first + end - at);
    const auto* y = call.operands[1].at<const Element>() + batch * problem.y_batch;
    for (std::int64_t row = 0; row < problem.rows; row += einsum_rows) {
      const auto* x = call.operands[0].at<const Element>() + batch * problem.x_batch + row * problem.x_row;
      auto* out = call.out.at<Element>() + batch * problem.out_batch + row * problem.out_row;
      const std::int64_t rows = smaller(einsum_rows, problem.rows - row);
      if (by_columns)
        einsum_by_columns(problem, x, y, out, rows, first, last, own);
      else
        einsum_by_rows(problem, x, y, out, rows, first, last, own);
    }
    at += last - first;
  }
}

inline void einsum(const Call& call, const Worker& worker) {
  if (call.out.dtype == DType::bf16) return einsum_in<bf16>(call, worker);
  einsum_in<float>(call, worker);
}
