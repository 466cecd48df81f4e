// The experts of a mixture: gated MLPs, each of which runs on the tokens that have a weight for it. Included inside an
// instruction set's namespace.
//
// A step's pairs of an expert and a token are sorted by the expert, then the token. First each pair's activation(gate)
// * up is made, by panels of all experts, which the workers share out by what they cost. Then each worker makes its own
// outputs of all pairs, and adds them up, so that a token's sum is in the order of the experts.

// What is worked on before the next tokens are begun: so much scratch memory holds.
constexpr std::int64_t most_pairs = 16384, most_mixture_tokens = 2048;
// Tokens of an expert whose packed rows stay in the cache while its panels pass by.
constexpr std::int64_t batch_rows = 96;
// What it takes to read a panel, in rows of a product with it.
constexpr std::int64_t panel_reading = 12;

struct Batch {
  std::int64_t expert, first, count;  // pairs
};

// What a gate makes of what it gates.
struct Gating {
  Vec alpha, offset, most, least;
  bool is_bounded, is_shifted;

  explicit Gating(const double* numbers)
      : alpha(broadcast(static_cast<float>(numbers[0]))),
        offset(broadcast(static_cast<float>(numbers[2]))),
        most(broadcast(static_cast<float>(numbers[1]))),
        least(zero() - most),
        is_bounded(numbers[1] != 0),
        is_shifted(numbers[2] != 0) {}

  Vec operator()(Vec gate, Vec up) const {
    if (is_bounded) {
      gate = minimum(most, gate);
      up = maximum(least, minimum(most, up));
    }
    if (is_shifted) up = up + offset;
    return divide(gate, broadcast(1.0f) + exponential(zero() - alpha * gate)) * up;
  }
};

// Some of an expert's biases, from a column on; zeros where there are none.
template <class Weight>
inline Vec bias_of(const Tensor* biases, std::int64_t expert, std::int64_t column) {
  if (!biases) return zero();
  const std::int64_t left = biases->width() - column;
  return left <= 0 ? zero()
                   : load_part(biases->at<const Weight>(expert) + column, static_cast<int>(smaller(left, lanes)));
}

// (x [T, D], weights [T, N], gate, up in panels of [N, F, D], down of [N, D, F], biases of each or of none; alpha,
// limit, offset) to [T, D]
template <class Panels>
struct Mixture {
  using Weight = typename Panels::Weight;
  using Packed = typename Panels::Packed;

  const Tensor &x, &weights, &gate, &up, &down, &out;
  const Tensor *gate_bias, *up_bias, *down_bias;
  Gating gating;
  std::int64_t T, N, K, F;              // padded as the panels are
  std::int64_t pairs, tokens, batches;  // at most, at once

  explicit Mixture(const Call& call)
      : x(call.operands[0]),
        weights(call.operands[1]),
        gate(call.operands[2]),
        up(call.operands[3]),
        down(call.operands[4]),
        out(call.out),
        gate_bias(call.num_operands > 5 ? &call.operands[5] : nullptr),
        up_bias(gate_bias ? &call.operands[6] : nullptr),
        down_bias(gate_bias ? &call.operands[7] : nullptr),
        gating(call.numbers),
        T(x.rows()),
        N(weights.width()),
        K(padded<Weight>(x.width())),
        F(Panels::inputs(down, outer_panels())),
        pairs(smaller(T * N, most_pairs + N)),
        tokens(smaller(T, most_mixture_tokens)),
        batches(N + pairs / batch_rows) {}

  std::int64_t inner_panels() const { return Panels::panels(gate, K); }
  std::int64_t outer_panels() const { return (out.width() + panel_width - 1) / panel_width; }
  std::int64_t out_stride() const { return outer_panels() * panel_width; }

  std::int64_t inner_bytes() const { return aligned(pairs * F * sizeof(Packed)); }
  std::int64_t sums_bytes() const { return aligned(tokens * out_stride() * sizeof(float)); }
  std::int64_t packed_bytes() const { return aligned(batch_rows * K * sizeof(Packed)); }
  std::int64_t wide_bytes() const {
    return Panels::is_widened ? aligned(smaller(larger(K, F), widest_panel) * panel_width * sizeof(Packed)) : 0;
  }
  std::int64_t worker_bytes() const {
    return packed_bytes() + 2 * wide_bytes() + aligned(pairs * sizeof(std::int32_t)) + aligned(pairs * sizeof(float)) +
           aligned(N * sizeof(std::int64_t)) + aligned(batches * sizeof(Batch));
  }
  std::int64_t bytes(int num_workers) const { return inner_bytes() + sums_bytes() + num_workers * worker_bytes(); }
};

// Where they lie in the scratch memory: what all share, then what this worker has.
template <class Panels>
struct MixtureScratch {
  using Packed = typename Panels::Packed;
  Packed* inner;  // of each pair, in blocks as `down` wants them
  float* sums;    // of each token
  Packed* packed;
  Packed *wide_gate, *wide_up;
  std::int32_t* token_of;  // a pair's
  float* weight_of;
  std::int64_t* ends;  // of each expert's pairs
  Batch* batches;
  std::int64_t num_batches = 0;

  MixtureScratch(const Mixture<Panels>& mixture, std::byte* at, int worker) {
    const auto take = [&]<class Element>(Element*& to, std::int64_t bytes) {
      to = reinterpret_cast<Element*>(at);
      at += bytes;
    };
    take(inner, mixture.inner_bytes());
    take(sums, mixture.sums_bytes());
    at += worker * mixture.worker_bytes();
    take(packed, mixture.packed_bytes());
    take(wide_gate, mixture.wide_bytes());
    take(wide_up, mixture.wide_bytes());
    take(token_of, aligned(mixture.pairs * sizeof(std::int32_t)));
    take(weight_of, aligned(mixture.pairs * sizeof(float)));
    take(ends, aligned(mixture.N * sizeof(std::int64_t)));
    take(batches, aligned(mixture.batches * sizeof(Batch)));
  }
};

template <template <class> class Panels>
std::int64_t experts_scratch(const Call& call, int num_workers) {
  return call.out.dtype == DType::bf16 ? Mixture<Panels<bf16>>(call).bytes(num_workers)
                                       : Mixture<Panels<float>>(call).bytes(num_workers);
}

// Calls f(expert) for each that a token has a weight for.
template <class Element, class Function>
void for_experts(const Element* weights, std::int64_t N, const Function& f) {
  for (std::int64_t n = 0; n < N; n += lanes) {
    unsigned chosen =
        nonzero_lanes(n + lanes <= N ? load(weights + n) : load_part(weights + n, static_cast<int>(N - n)));
    for (; chosen; chosen &= chosen - 1) f(n + __builtin_ctz(chosen));
  }
}

// Lists the pairs of the tokens from `first` on, as many as are worked on at once; returns the end of those. Every
// worker does, which is quicker than to wait for one that does.
template <class Panels>
std::int64_t list_pairs(const Mixture<Panels>& mixture, std::int64_t first, MixtureScratch<Panels>& own) {
  using Element = typename Panels::Weight;
  for (std::int64_t n = 0; n < mixture.N; ++n) own.ends[n] = 0;
  std::int64_t last = first, pairs = 0;
  for (; last < mixture.T && last - first < mixture.tokens && pairs <= most_pairs; ++last)
    for_experts(mixture.weights.template at<const Element>(last), mixture.N, [&](std::int64_t n) {
      ++own.ends[n];
      ++pairs;
    });
  std::int64_t begin = 0;
  own.num_batches = 0;
  for (std::int64_t n = 0; n < mixture.N; ++n) {
    const std::int64_t count = own.ends[n];
    for (std::int64_t done = 0; done < count; done += batch_rows)
      own.batches[own.num_batches++] = {n, begin + done, smaller(batch_rows, count - done)};
    own.ends[n] = begin;
    begin += count;
  }
  for (std::int64_t t = first; t < last; ++t) {
    const auto* weights = mixture.weights.template at<const Element>(t);
    for_experts(weights, mixture.N, [&](std::int64_t n) {
      own.token_of[own.ends[n]] = static_cast<std::int32_t>(t);
      own.weight_of[own.ends[n]++] = widen(weights[n]);
    });
  }
  return last;
}

// Calls run.operator()<panels>(panel) for panels [first, last) of a batch: two side by side where rows are few, since
// those wait for memory and for their own sums.
template <class Function>
void for_panels(const Blocks& blocks, std::int64_t first, std::int64_t last, const Function& run) {
  std::int64_t panel = first;
  if (blocks.count == 1 && 2 * blocks.size(0) <= block_rows)
    for (; panel + 1 < last; panel += 2) run.template operator()<2>(panel);
  for (; panel < last; ++panel) run.template operator()<1>(panel);
}

// What the gates of a batch make of what they gate, for some panels, packed for the product with `down`.
template <class Panels>
void gate_batch(const Mixture<Panels>& mixture, const Batch& batch, std::int64_t first, std::int64_t last,
                MixtureScratch<Panels>& own) {
  using Weight = typename Panels::Weight;
  using Packed = typename Panels::Packed;
  const Blocks blocks(batch.count);
  const std::int64_t K = mixture.K, F = mixture.F;
  for (std::int64_t b = 0; b < blocks.count; ++b) {
    RowsAt<Weight> at = {};
    for (int r = 0; r < blocks.size(b); ++r)
      at[r] = mixture.x.template at<const Weight>(own.token_of[batch.first + blocks.first(b) + r]);
    pack_block<Weight, Weight>(at, blocks.size(b), mixture.x.width(), own.packed + blocks.first(b) * K);
  }
  const auto run = [&]<int panels>(std::int64_t panel, std::int64_t b, const auto& gate, const auto& up) {
    for_rows(blocks.size(b), [&]<int rows>() {
      if constexpr (rows * panels <= block_rows) {
        const Packed* x = own.packed + blocks.first(b) * K;
        Packed* to = own.inner + (batch.first + blocks.first(b)) * F;
        Sums<rows, panels> gated = {}, product = {};
        gate.add(x, gated);
        up.add(x, product);
        for (int j = 0; j < panels * panel_vectors; ++j) {
          const std::int64_t column = panel * panel_width + j * lanes;
          const Vec of_gate = bias_of<Weight>(mixture.gate_bias, batch.expert, column);
          const Vec of_up = bias_of<Weight>(mixture.up_bias, batch.expert, column);
          for (int r = 0; r < rows; ++r) {
            alignas(64) float each[lanes];
            store(each, mixture.gating(gated.at[r][j] + of_gate, product.at[r][j] + of_up));
            for (int i = 0; i < lanes && column + i < F; ++i)
              assign(each[i], to + Packing<Weight>::index(column + i, r, rows));
          }
        }
      }
    });
  };
  for_panels(blocks, first, last, [&]<int panels>(std::int64_t panel) {
    const Panels gates(mixture.gate, batch.expert, panel, K), ups(mixture.up, batch.expert, panel, K);
    if constexpr (panels == 2) return run.template operator()<2>(panel, 0, gates, ups);
    gates.widened(blocks.count, own.wide_gate, [&]<class Gate>(const Gate& gate) {
      ups.widened(blocks.count, own.wide_up, [&]<class Up>(const Up& up) {
        if constexpr (std::is_same_v<Gate, Up>)  // they are widened both or neither
          for (std::int64_t b = 0; b < blocks.count; ++b) run.template operator()<1>(panel, b, gate, up);
      });
    });
  });
}

// This worker's panels of all batches, in even parts of what they cost: an expert with many tokens is more than one
// worker's.
template <class Panels>
void gate_batches(const Mixture<Panels>& mixture, const Worker& worker, MixtureScratch<Panels>& own) {
  const std::int64_t panels = mixture.inner_panels();
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < own.num_batches; ++i) total += panels * (panel_reading + own.batches[i].count);
  const std::int64_t begin = worker.first(total), end = worker.last(total);
  std::int64_t before = 0;
  for (std::int64_t i = 0; i < own.num_batches; ++i) {
    const std::int64_t cost = panel_reading + own.batches[i].count;
    // A panel belongs to whose part it begins in.
    const auto panel_at = [&](std::int64_t point) {
      return point <= before ? 0 : smaller((point - before + cost - 1) / cost, panels);
    };
    const std::int64_t first = panel_at(begin), last = panel_at(end);
    if (first < last) gate_batch(mixture, own.batches[i], first, last, own);
    before += panels * cost;
  }
}

// Adds a batch's products with `down` to its tokens' sums, for some panels.
template <class Panels>
void add_batch(const Mixture<Panels>& mixture, const Batch& batch, std::int64_t first_token, std::int64_t first,
               std::int64_t last, MixtureScratch<Panels>& own) {
  const Blocks blocks(batch.count);
  const std::int64_t F = mixture.F;
  const auto run = [&]<int panels>(std::int64_t panel, std::int64_t b, const auto& down) {
    for_rows(blocks.size(b), [&]<int rows>() {
      if constexpr (rows * panels <= block_rows) {
        const std::int64_t pair = batch.first + blocks.first(b);
        Sums<rows, panels> made = {};
        down.add(own.inner + pair * F, made);
        for (int j = 0; j < panels * panel_vectors; ++j) {
          const std::int64_t column = panel * panel_width + j * lanes;
          const Vec bias = bias_of<typename Panels::Weight>(mixture.down_bias, batch.expert, column);
          for (int r = 0; r < rows; ++r) {
            const Vec weight = broadcast(own.weight_of[pair + r]);
            float* to = own.sums + (own.token_of[pair + r] - first_token) * mixture.out_stride() + column;
            store(to, fma(weight, made.at[r][j] + bias, load(to)));
          }
        }
      }
    });
  };
  for_panels(blocks, first, last, [&]<int panels>(std::int64_t panel) {
    const Panels downs(mixture.down, batch.expert, panel, F);
    if constexpr (panels == 2) return run.template operator()<2>(panel, 0, downs);
    downs.widened(blocks.count, own.wide_gate, [&](const auto& down) {
      for (std::int64_t b = 0; b < blocks.count; ++b) run.template operator()<1>(panel, b, down);
    });
  });
}

template <class Panels>
void experts_of(const Call& call, const Worker& worker) {
  using Weight = typename Panels::Weight;
  const Mixture<Panels> mixture(call);
  MixtureScratch<Panels> own(mixture, call.scratch, worker.index);
  const std::int64_t first = worker.first(mixture.outer_panels()), last = worker.last(mixture.outer_panels());
  const std::int64_t column = first * panel_width, stored = (last - first) * panel_width;
  const std::int64_t columns = smaller(stored, mixture.out.width() - column);
  for (std::int64_t token = 0; token < mixture.T;) {
    if (token > 0) worker.barrier();  // the others may still read what is written next
    const std::int64_t end = list_pairs(mixture, token, own);
    gate_batches(mixture, worker, own);
    worker.barrier();
    const auto sums_of = [&](std::int64_t t) { return own.sums + (t - token) * mixture.out_stride() + column; };
    for (std::int64_t t = token; t < end; ++t) std::memset(sums_of(t), 0, stored * sizeof(float));
    for (std::int64_t i = 0; i < own.num_batches; ++i) add_batch(mixture, own.batches[i], token, first, last, own);
    for (std::int64_t t = token; t < end; ++t) {
      Weight* to = mixture.out.template at<Weight>(t) + column;
      for (std::int64_t c = 0; c < columns; c += lanes)
        store_part(to + c, load(sums_of(t) + c), static_cast<int>(smaller(lanes, columns - c)));
    }
    token = end;
  }
}

template <template <class> class Panels>
void experts(const Call& call, const Worker& worker) {
  if (call.out.dtype == DType::bf16) return experts_of<Panels<bf16>>(call, worker);
  experts_of<Panels<float>>(call, worker);
}
