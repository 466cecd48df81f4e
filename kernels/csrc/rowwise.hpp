// Ops on the rows of a step, each on its own: norms, activations, sums, products. Included inside an instruction set's
// namespace.

// Calls f(index, vectors of each tensor...) for every vector of this worker's rows.
template <class Element, class Function>
void for_vectors(const Call& call, const Worker& worker, const Function& f) {
  const std::int64_t vectors = call.out.vectors();
  for (std::int64_t row = worker.first(call.out.rows()); row < worker.last(call.out.rows()); ++row)
    for (std::int64_t v = 0; v < vectors; ++v) f(row, v);
}

template <class Element>
Element* vector_at(const Tensor& x, std::int64_t row, std::int64_t vector) {
  return x.at<Element>(row) + vector * x.vector_stride();
}

template <class Element, class Function>
void apply(const Element* x, Element* to, std::int64_t width, const Function& f) {
  std::int64_t e = 0;
  for (; e + lanes <= width; e += lanes) store(to + e, f(load(x + e)));
  if (e < width) store_part(to + e, f(load_part(x + e, static_cast<int>(width - e))), static_cast<int>(width - e));
}

template <class Element, class Function>
void apply(const Element* x, const Element* y, Element* to, std::int64_t width, const Function& f) {
  std::int64_t e = 0;
  for (; e + lanes <= width; e += lanes) store(to + e, f(load(x + e), load(y + e)));
  const int rest = static_cast<int>(width - e);
  if (rest) store_part(to + e, f(load_part(x + e, rest), load_part(y + e, rest)), rest);
}

template <class Function>
void unary(const Call& call, const Worker& worker, const Function& f) {
  const auto run = [&]<class Element>(Element) {
    for_vectors<Element>(call, worker, [&](std::int64_t row, std::int64_t v) {
      apply(vector_at<const Element>(call.operands[0], row, v), vector_at<Element>(call.out, row, v), call.out.width(),
            f);
    });
  };
  if (call.out.dtype == DType::bf16)
    run(bf16{});
  else
    run(float{});
}

template <class Function>
void binary(const Call& call, const Worker& worker, const Function& f) {
  const auto run = [&]<class Element>(Element) {
    for_vectors<Element>(call, worker, [&](std::int64_t row, std::int64_t v) {
      apply(vector_at<const Element>(call.operands[0], row, v), vector_at<const Element>(call.operands[1], row, v),
            vector_at<Element>(call.out, row, v), call.out.width(), f);
    });
  };
  if (call.out.dtype == DType::bf16)
    run(bf16{});
  else
    run(float{});
}

inline void silu_rows(const Call& call, const Worker& worker) {
  unary(call, worker, [](Vec x) { return silu(x); });
}
inline void sigmoid_rows(const Call& call, const Worker& worker) {
  const Vec one = broadcast(1.0f);
  unary(call, worker, [=](Vec x) { return divide(one, one + exponential(zero() - x)); });
}
inline void gelu_rows(const Call& call, const Worker& worker) {
  unary(call, worker, [](Vec x) { return gelu(x); });
}
inline void gelu_tanh_rows(const Call& call, const Worker& worker) {
  unary(call, worker, [](Vec x) { return gelu_tanh(x); });
}
inline void scale_rows(const Call& call, const Worker& worker) {
  const Vec factor = broadcast(static_cast<float>(call.numbers[0]));
  unary(call, worker, [=](Vec x) { return x * factor; });
}
inline void softcap_rows(const Call& call, const Worker& worker) {
  const Vec cap = broadcast(static_cast<float>(call.numbers[0]));
  unary(call, worker, [=](Vec x) { return cap * hyperbolic_tangent(divide(x, cap)); });
}
inline void add_rows_of(const Call& call, const Worker& worker) {
  binary(call, worker, [](Vec x, Vec y) { return x + y; });
}
inline void mul_rows(const Call& call, const Worker& worker) {
  binary(call, worker, [](Vec x, Vec y) { return x * y; });
}

// (x [..., D], factors [..., 1])
inline void scale_rows_of(const Call& call, const Worker& worker) {
  const auto run = [&]<class Element>(Element) {
    for_vectors<Element>(call, worker, [&](std::int64_t row, std::int64_t v) {
      const Vec factor = broadcast(widen(*vector_at<const Element>(call.operands[1], row, v)));
      apply(vector_at<const Element>(call.operands[0], row, v), vector_at<Element>(call.out, row, v), call.out.width(),
            [=](Vec x) { return x * factor; });
    });
  };
  if (call.out.dtype == DType::bf16)
    run(bf16{});
  else
    run(float{});
}

template <class Element>
float sum_of_squares(const Element* x, std::int64_t width) {
  Vec sums[4] = {zero(), zero(), zero(), zero()};
  std::int64_t e = 0;
  for (int j = 0; e + lanes <= width; e += lanes, j = (j + 1) % 4) {
    const Vec value = load(x + e);
    sums[j] = fma(value, value, sums[j]);
  }
  if (e < width) {
    const Vec value = load_part(x + e, static_cast<int>(width - e));
    sums[0] = fma(value, value, sums[0]);
  }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// (x, w; eps, offset)
inline void rms_norm_rows(const Call& call, const Worker& worker) {
  const auto eps = static_cast<float>(call.numbers[0]), offset = static_cast<float>(call.numbers[1]);
  const auto run = [&]<class Element>(Element) {
    const auto* w = call.operands[1].at<const Element>();
    const std::int64_t width = call.out.width();
    for_vectors<Element>(call, worker, [&](std::int64_t row, std::int64_t v) {
      const Element* x = vector_at<const Element>(call.operands[0], row, v);
      const float mean = sum_of_squares(x, width) / static_cast<float>(width);
      const Vec inverse = broadcast(1.0f / std::sqrt(mean + eps)), shift = broadcast(offset);
      apply(x, w, vector_at<Element>(call.out, row, v), width,
            [=](Vec value, Vec gain) { return value * inverse * (gain + shift); });
    });
  };
  if (call.out.dtype == DType::bf16)
    run(bf16{});
  else
    run(float{});
}

// (x [T, ...]) to f32[T]: of each row the sum of its squares, vector by vector.
inline void row_squares_rows(const Call& call, const Worker& worker) {
  const Tensor& x = call.operands[0];
  const auto run = [&]<class Element>(Element) {
    for (std::int64_t row = worker.first(x.rows()); row < worker.last(x.rows()); ++row) {
      float total = 0;
      for (std::int64_t v = 0; v < x.vectors(); ++v)
        total += sum_of_squares(vector_at<const Element>(x, row, v), x.width());
      call.out.at<float>()[row] = total;
    }
  };
  if (x.dtype == DType::bf16)
    run(bf16{});
  else
    run(float{});
}

// (x [T, ...], squares f32[T], w [...]; eps, offset, count)
inline void rms_scale_rows(const Call& call, const Worker& worker) {
  const auto eps = static_cast<float>(call.numbers[0]), offset = static_cast<float>(call.numbers[1]);
  const auto count = static_cast<float>(call.numbers[2]);
  const auto* squares = call.operands[1].at<const float>();
  const auto run = [&]<class Element>(Element) {
    const auto* w = call.operands[2].at<const Element>();
    const std::int64_t width = call.out.width();
    for_vectors<Element>(call, worker, [&](std::int64_t row, std::int64_t v) {
      const Vec inverse = broadcast(1.0f / std::sqrt(squares[row] / count + eps)), shift = broadcast(offset);
      apply(vector_at<const Element>(call.operands[0], row, v), w + v * width, vector_at<Element>(call.out, row, v),
            width, [=](Vec value, Vec gain) { return value * inverse * (gain + shift); });
    });
  };
  if (call.out.dtype == DType::bf16)
    run(bf16{});
  else
    run(float{});
}

// (x, positions; interleaved, magnitude), a constant for each pair; `prepared` the table of turns: for each position
// the cosines, then the sines, of the pairs. What a vector has after its pairs stays.
inline void rope_rows(const Call& call, const Worker& worker) {
  const bool interleaved = call.numbers[0] != 0;
  const auto* table = static_cast<const float*>(call.prepared);
  const auto* positions = call.operands[1].at<const std::int32_t>();
  const std::int64_t half = call.num_constants, rest = call.out.width() - 2 * half;
  const auto run = [&]<class Element>(Element) {
    for_vectors<Element>(call, worker, [&](std::int64_t row, std::int64_t v) {
      const Element* x = vector_at<const Element>(call.operands[0], row, v);
      Element* to = vector_at<Element>(call.out, row, v);
      std::memcpy(to + 2 * half, x + 2 * half, rest * sizeof(Element));
      const float* cosine = table + 2 * half * positions[row];
      const float* sine = cosine + half;
      if (interleaved) {
        for (std::int64_t e = 0; e < half; ++e) {
          const float first = widen(x[2 * e]), second = widen(x[2 * e + 1]);
          narrow_to(std::fma(first, cosine[e], -(second * sine[e])), to + 2 * e);
          narrow_to(std::fma(second, cosine[e], first * sine[e]), to + 2 * e + 1);
        }
        return;
      }
      std::int64_t e = 0;
      for (; e + lanes <= half; e += lanes) {
        const Vec first = load(x + e), second = load(x + half + e), c = load(cosine + e), s = load(sine + e);
        store(to + e, fma(first, c, zero() - second * s));
        store(to + half + e, fma(second, c, first * s));
      }
      for (; e < half; ++e) {
        const float first = widen(x[e]), second = widen(x[half + e]);
        narrow_to(std::fma(first, cosine[e], -(second * sine[e])), to + e);
        narrow_to(std::fma(second, cosine[e], first * sine[e]), to + half + e);
      }
    });
  };
  if (call.out.dtype == DType::bf16)
    run(bf16{});
  else
    run(float{});
}

template <class Element>
std::int32_t index_of_largest(const Element* x, std::int64_t width) {
  constexpr int unroll = 4;
  Vec best[unroll];
  unsigned nan = 0;
  for (Vec& some : best) some = broadcast(-INFINITY);
  std::int64_t e = 0;
  for (; e + unroll * lanes <= width; e += unroll * lanes)
    for (int j = 0; j < unroll; ++j) {
      const Vec value = load(x + e + j * lanes);
      best[j] = maximum(best[j], value);
      nan |= nan_lanes(value);
    }
  float most = largest(maximum(maximum(best[0], best[1]), maximum(best[2], best[3])));
  for (; e < width; ++e) {
    most = widen(x[e]) > most ? widen(x[e]) : most;
    nan |= std::isnan(widen(x[e]));
  }
  if (nan || !std::isfinite(most)) return -1;
  const Vec wanted = broadcast(most);
  e = 0;
  for (; e + lanes <= width; e += lanes)
    if (any_equal(load(x + e), wanted)) break;
  for (; e < width; ++e)
    if (widen(x[e]) == most) return static_cast<std::int32_t>(e);
  return -1;
}

// A program's last call, for who wants the tokens of greedy sampling and no logits.
// (x [S, V]) to i32[S]: of each row the first index of the largest number; -1 where that is not finite, or a number is
// NaN.
inline void max_index_rows(const Call& call, const Worker& worker) {
  const Tensor& x = call.operands[0];
  auto* out = call.out.at<std::int32_t>();
  for (std::int64_t row = worker.first(x.rows()); row < worker.last(x.rows()); ++row)
    out[row] = x.dtype == DType::bf16 ? index_of_largest(x.at<const bf16>(row), x.width())
                                      : index_of_largest(x.at<const float>(row), x.width());
}
