// Recurrences over the tokens of a sequence, whose state is kept between steps. Included inside an instruction set's
// namespace.
//
// A sequence's tokens are taken one after the other, in decoding as in a prompt, and a lane is a channel or a column of
// a state: so its bits are the same in any chunks, company and team.

constexpr int max_taps = 8;
constexpr std::int64_t tokens_at_once =
    16;  // of a sequence, before the next columns: their keys stay in the nearest cache

// A sequence's rows among those here, and its page of the states; it begins with them where `begins`.
struct OwnRows {
  std::int64_t first, last, page;
  bool begins;
};

// (.., spans i32[S, 2], states i32[S]; shard): as `own_sequences` of attention.py.
inline OwnRows own_rows(const Tensor& spans, const Tensor& states, std::int64_t sequence, std::int64_t begin,
                        std::int64_t rows) {
  const auto* span = spans.at<const std::int32_t>(sequence);
  const std::int64_t page = states.at<const std::int32_t>()[sequence];
  const std::int64_t first = span[0] > begin ? span[0] : begin, last = smaller(span[1], begin + rows);
  return {first - begin, last - begin, page < 0 ? ~page : page, page < 0};
}

// Zeros in this worker's share of the rows that are no sequence's: those that pad a step.
inline void clear_unclaimed_rows(const Call& call, const Worker& worker, const Tensor& spans, std::int64_t begin) {
  const Tensor& out = call.out;
  const std::int64_t row_bytes = out.row_elements() * element_bytes(out.dtype);
  for (std::int64_t row = worker.first(out.rows()); row < worker.last(out.rows()); ++row) {
    bool claimed = false;
    for (std::int64_t s = 0; s < spans.rows() && !claimed; ++s) {
      const auto* span = spans.at<const std::int32_t>(s);
      claimed = span[0] <= begin + row && begin + row < span[1];
    }
    if (!claimed) std::memset(out.data + row * row_bytes, 0, row_bytes);
  }
}

inline Vec load_up_to(const float* from, int count) { return count == lanes ? load(from) : load_part(from, count); }
inline Vec load_up_to(const bf16* from, int count) { return count == lanes ? load(from) : load_part(from, count); }
template <class Element>
void store_up_to(Element* to, Vec x, int count) {
  if (count == lanes)
    store(to, x);
  else
    store_part(to, x, count);
}

// Some neighbouring channels of all sequences. `channel`: the first one's number.
template <class Element>
void convolve(const Call& call, std::int64_t vector, std::int64_t e, int count) {
  const Tensor &x = call.operands[0], &w = call.operands[1], &state = call.operands[2];
  const Tensor &spans = call.operands[3], &states = call.operands[4];
  const std::int64_t begin = static_cast<std::int64_t>(call.numbers[0]) * x.rows();
  const std::int64_t channel = vector * x.width() + e;
  const int taps = static_cast<int>(w.width());
  Vec tap[max_taps], seen[max_taps];
  for (int j = 0; j < taps; ++j) {
    alignas(64) float of_channels[lanes] = {};
    for (int i = 0; i < count; ++i) of_channels[i] = widen(w.at<const Element>()[(channel + i) * taps + j]);
    tap[j] = load(of_channels);
  }
  for (std::int64_t s = 0; s < spans.rows(); ++s) {
    const OwnRows own = own_rows(spans, states, s, begin, x.rows());
    if (own.first >= own.last) continue;
    float* past = state.at<float>(own.page) + channel;
    for (int j = 0; j + 1 < taps; ++j) seen[j] = own.begins ? zero() : load_up_to(past + j * state.strides[1], count);
    for (std::int64_t t = own.first; t < own.last; ++t) {
      seen[taps - 1] = load_up_to(vector_at<const Element>(x, t, vector) + e, count);
      Vec made = seen[0] * tap[0];
      for (int j = 1; j < taps; ++j) made = fma(seen[j], tap[j], made);
      store_up_to(vector_at<Element>(call.out, t, vector) + e, made, count);
      for (int j = 0; j + 1 < taps; ++j) seen[j] = seen[j + 1];
    }
    for (int j = 0; j + 1 < taps; ++j) store_up_to(past + j * state.strides[1], seen[j], count);
  }
}

// (x [T, ...], w [..., 1, W], state f32[pages, W-1, ...], spans, states; shard)
inline void short_conv(const Call& call, const Worker& worker) {
  const Tensor& x = call.operands[0];
  clear_unclaimed_rows(call, worker, call.operands[3], static_cast<std::int64_t>(call.numbers[0]) * x.rows());
  const std::int64_t blocks = (x.width() + lanes - 1) / lanes, all = x.vectors() * blocks;
  for (std::int64_t i = worker.first(all); i < worker.last(all); ++i) {
    const std::int64_t vector = i / blocks, e = i % blocks * lanes;
    const int count = static_cast<int>(smaller(lanes, x.width() - e));
    if (x.dtype == DType::bf16)
      convolve<bf16>(call, vector, e, count);
    else
      convolve<float>(call, vector, e, count);
  }
}

// (x [T, ...], rate, bias f32[...]) to f32[T, ...]
inline void decay_rows(const Call& call, const Worker& worker) {
  const Tensor& x = call.operands[0];
  const auto *rate = call.operands[1].at<const float>(), *bias = call.operands[2].at<const float>();
  const auto run = [&]<class Element>(Element) {
    for_vectors<Element>(call, worker, [&](std::int64_t row, std::int64_t v) {
      const Element* from = vector_at<const Element>(x, row, v);
      float* to = vector_at<float>(call.out, row, v);
      for (std::int64_t e = 0; e < x.width(); ++e) {
        const float wide = widen(from[e]) + bias[v * x.width() + e];
        const float softplus = wide > 20.0f ? wide : std::log1p(std::exp(wide));
        to[e] = std::exp(-std::exp(rate[v * x.width() + e]) * softplus);
      }
    });
  };
  if (x.dtype == DType::bf16)
    run(bf16{});
  else
    run(float{});
}

// A worker's queries and keys of some tokens, of length one.
struct DeltaScratch {
  float *queries, *keys;
  std::int64_t stride;

  static std::int64_t bytes(std::int64_t A) { return aligned(2 * tokens_at_once * (A + lanes) * sizeof(float)); }
  DeltaScratch(std::byte* at, std::int64_t A)
      : queries(reinterpret_cast<float*>(at)), keys(queries + tokens_at_once * (A + lanes)), stride(A + lanes) {}
};

template <class Element>
void to_length_one(const Element* x, std::int64_t width, float scale, float eps, float* to) {
  const Vec factor = broadcast(scale / std::sqrt(sum_of_squares(x, width) + eps));
  for (std::int64_t e = 0; e < width; e += lanes) {
    const int count = static_cast<int>(smaller(lanes, width - e));
    store_up_to(to + e, load_up_to(x + e, count) * factor, count);
  }
}

// What a state is multiplied with takes turns on so many sums, so that one need not wait for the other.
constexpr int delta_sums = 4;

// Some columns of a head's matrix [A, E] through one token: decayed, corrected by the key, and read by the query.
template <int vectors, class Element>
void delta_token(float* matrix, std::int64_t A, std::int64_t E, const float* query, const float* key, float decay,
                 float beta, const Element* value, int count, Element* to) {
  Vec sums[delta_sums][vectors], change[vectors];
  const auto width = [&](int j) { return j + 1 == vectors ? count : lanes; };
  const auto clear = [&] {
    for (auto& some : sums)
      for (Vec& one : some) one = zero();
  };
  const auto total = [&](int j) { return (sums[0][j] + sums[1][j]) + (sums[2][j] + sums[3][j]); };
  clear();
  for (std::int64_t a = 0; a < A; a += delta_sums)
    for (int i = 0; i < delta_sums && a + i < A; ++i) {
      const Vec weight = broadcast(key[a + i]);
      for (int j = 0; j < vectors; ++j)
        sums[i][j] = fma(load_up_to(matrix + (a + i) * E + j * lanes, width(j)), weight, sums[i][j]);
    }
  const Vec keep = broadcast(decay), gain = broadcast(beta);
  for (int j = 0; j < vectors; ++j)
    change[j] = fma(zero() - keep, total(j), load_up_to(value + j * lanes, width(j))) * gain;
  clear();
  for (std::int64_t a = 0; a < A; a += delta_sums)
    for (int i = 0; i < delta_sums && a + i < A; ++i) {
      const Vec weight = broadcast(key[a + i]), reader = broadcast(query[a + i]);
      for (int j = 0; j < vectors; ++j) {
        float* at = matrix + (a + i) * E + j * lanes;
        const Vec now = fma(weight, change[j], load_up_to(at, width(j)) * keep);
        store_up_to(at, now, width(j));
        sums[i][j] = fma(now, reader, sums[i][j]);
      }
    }
  for (int j = 0; j < vectors; ++j) store_up_to(to + j * lanes, total(j), width(j));
}

// A head of the values through a sequence's tokens: some tokens at once, column after column.
template <class Element>
void delta_head(const Call& call, const OwnRows& own, std::int64_t k, std::int64_t g, const DeltaScratch& scratch) {
  const Tensor &q = call.operands[0], &keys = call.operands[1], &v = call.operands[2], &decay = call.operands[3];
  const Tensor &beta = call.operands[4], &state = call.operands[5], &out = call.out;
  const auto scale = static_cast<float>(call.numbers[1]), eps = static_cast<float>(call.numbers[2]);
  const std::int64_t A = q.width(), E = v.width();
  float* matrix = state.at<float>(own.page) + k * state.strides[1] + g * state.strides[2];
  if (own.begins) std::memset(matrix, 0, A * E * sizeof(float));
  for (std::int64_t from = own.first; from < own.last; from += tokens_at_once) {
    const std::int64_t to = smaller(own.last, from + tokens_at_once);
    for (std::int64_t t = from; t < to; ++t) {
      to_length_one(q.at<const Element>(t) + k * q.strides[1], A, scale, eps,
                    scratch.queries + (t - from) * scratch.stride);
      to_length_one(keys.at<const Element>(t) + k * keys.strides[1], A, 1.0f, eps,
                    scratch.keys + (t - from) * scratch.stride);
    }
    const auto columns = [&]<int vectors>(std::int64_t e, int count) {
      for (std::int64_t t = from; t < to; ++t) {
        const auto row = (t - from) * scratch.stride;
        delta_token<vectors>(matrix + e, A, E, scratch.queries + row, scratch.keys + row,
                             decay.at<const float>(t)[k * decay.strides[1] + g * decay.strides[2]],
                             widen(beta.at<const Element>(t)[k * beta.strides[1] + g * beta.strides[2]]),
                             v.at<const Element>(t) + k * v.strides[1] + g * v.strides[2] + e, count,
                             out.at<Element>(t) + k * out.strides[1] + g * out.strides[2] + e);
      }
    };
    std::int64_t e = 0;
    for (; e + 2 * lanes <= E; e += 2 * lanes) columns.template operator()<2>(e, lanes);
    for (; e < E; e += lanes) columns.template operator()<1>(e, static_cast<int>(smaller(lanes, E - e)));
  }
}

inline std::int64_t gated_delta_scratch(const Call& call, int num_workers) {
  return DeltaScratch::bytes(call.operands[0].width()) * num_workers;
}

// (q, k [T, K, A], v [T, K, G, E], decay f32[T, K, G], beta [T, K, G], state f32[pages, K, G, A, E], spans, states;
// shard, scale, eps). Heads are shared out, each with all sequences, so that a long prompt is not one worker's.
inline void gated_delta(const Call& call, const Worker& worker) {
  const Tensor &v = call.operands[2], &spans = call.operands[6], &states = call.operands[7];
  const std::int64_t begin = static_cast<std::int64_t>(call.numbers[0]) * v.rows();
  clear_unclaimed_rows(call, worker, spans, begin);
  const DeltaScratch scratch(call.scratch + worker.index * DeltaScratch::bytes(call.operands[0].width()),
                             call.operands[0].width());
  const std::int64_t heads = v.sizes[1] * v.sizes[2];
  for (std::int64_t h = worker.first(heads); h < worker.last(heads); ++h)
    for (std::int64_t s = 0; s < spans.rows(); ++s) {
      const OwnRows own = own_rows(spans, states, s, begin, v.rows());
      if (own.first >= own.last) continue;
      if (v.dtype == DType::bf16)
        delta_head<bf16>(call, own, h / v.sizes[2], h % v.sizes[2], scratch);
      else
        delta_head<float>(call, own, h / v.sizes[2], h % v.sizes[2], scratch);
    }
}
