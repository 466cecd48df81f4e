// Which experts of a mixture a token runs on, and with which weights. Included inside an instruction set's namespace.

// Larger, or NaN beside a number: what a stable sort in falling order has first.
inline bool is_before(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

// The places of the `most` largest of values, in falling order; of equals the first.
inline void find_largest(const float* values, std::int64_t count, std::int64_t most, std::int32_t* places) {
  std::int64_t found = 0;
  for (std::int64_t n = 0; n < count; ++n) {
    if (found == most && !is_before(values[n], values[places[found - 1]])) continue;
    std::int64_t at = found < most ? found++ : found - 1;
    for (; at > 0 && is_before(values[n], values[places[at - 1]]); --at) places[at] = places[at - 1];
    places[at] = static_cast<std::int32_t>(n);
  }
}

struct RouteOptions {
  std::int64_t top_k, groups, top_groups, group_best;
  bool sigmoid, normalize;
  float scale;
};

// (logits [T, N], bias [N]?; top_k, whether sigmoid, normalize, scale, groups, top_groups, group_best)
inline RouteOptions route_options(const Call& call) {
  const auto whole = [&](int index) { return static_cast<std::int64_t>(call.numbers[index]); };
  return {whole(0),
          whole(4),
          whole(5),
          whole(6),
          call.numbers[1] != 0,
          call.numbers[2] != 0,
          static_cast<float>(call.numbers[3])};
}

// A worker's numbers for one token; whole vectors of scores.
struct RouteScratch {
  float *scores, *ranked, *group_sums;
  std::int32_t* places;

  static std::int64_t bytes(std::int64_t N) { return 4 * aligned((N + lanes) * sizeof(float)); }
  RouteScratch(std::byte* at, std::int64_t N) {
    const std::int64_t each = bytes(N) / 4;
    scores = reinterpret_cast<float*>(at), ranked = reinterpret_cast<float*>(at + each);
    group_sums = reinterpret_cast<float*>(at + 2 * each), places = reinterpret_cast<std::int32_t*>(at + 3 * each);
  }
};

inline std::int64_t route_scratch(const Call& call, int num_workers) {
  return RouteScratch::bytes(call.out.width()) * num_workers;
}

template <class Element>
void score_experts(const Element* logits, std::int64_t N, bool sigmoid, float* scores) {
  const Vec one = broadcast(1.0f);
  for (std::int64_t n = 0; n < N; ++n) scores[n] = widen(logits[n]);
  for (std::int64_t n = N; n % lanes != 0; ++n) scores[n] = -INFINITY;
  if (sigmoid) {
    for (std::int64_t n = 0; n < N; n += lanes)
      store(scores + n, divide(one, one + exponential(zero() - load(scores + n))));
    return;
  }
  Vec most = broadcast(-INFINITY), total = zero();
  for (std::int64_t n = 0; n < N; n += lanes) most = maximum(most, load(scores + n));
  most = broadcast(largest(most));
  for (std::int64_t n = 0; n < N; n += lanes) {
    const Vec power = exponential(load(scores + n) - most);
    store(scores + n, power);
    total = total + power;
  }
  total = broadcast(sum(total));
  for (std::int64_t n = 0; n < N; n += lanes) store(scores + n, divide(load(scores + n), total));
}

// Leaves the experts of the groups whose best ones have the largest sum: the others are ranked last.
inline void keep_top_groups(const RouteOptions& options, std::int64_t N, const RouteScratch& own) {
  const std::int64_t size = N / options.groups;
  for (std::int64_t g = 0; g < options.groups; ++g) {
    const float* ranked = own.ranked + g * size;
    const std::int64_t best = smaller(options.group_best, size);
    find_largest(ranked, size, best, own.places);
    own.group_sums[g] = 0;
    for (std::int64_t i = 0; i < best; ++i) own.group_sums[g] += ranked[own.places[i]];
  }
  find_largest(own.group_sums, options.groups, options.top_groups, own.places);
  for (std::int64_t g = 0; g < options.groups; ++g) {
    bool kept = false;
    for (std::int64_t i = 0; i < options.top_groups; ++i) kept = kept || own.places[i] == g;
    for (std::int64_t n = g * size; !kept && n < (g + 1) * size; ++n) own.ranked[n] = -INFINITY;
  }
}

template <class Element>
void route_token(const Element* logits, const Tensor* bias, const RouteOptions& options, std::int64_t N,
                 const RouteScratch& own, Element* to) {
  score_experts(logits, N, options.sigmoid, own.scores);
  for (std::int64_t n = 0; n < N; ++n) {
    const float more = !bias                        ? 0.0f
                       : bias->dtype == DType::bf16 ? widen(bias->at<const bf16>()[n])
                                                    : bias->at<const float>()[n];
    own.ranked[n] = own.scores[n] + more;
  }
  if (options.groups > 1) keep_top_groups(options, N, own);
  find_largest(own.ranked, N, options.top_k, own.places);
  float total = 0;
  for (std::int64_t i = 0; i < options.top_k; ++i) total += own.scores[own.places[i]];
  const float divisor = options.normalize ? total + 1e-20f : 1;
  std::memset(to, 0, N * sizeof(Element));
  for (std::int64_t i = 0; i < options.top_k; ++i)
    narrow_to(own.scores[own.places[i]] / divisor * options.scale, to + own.places[i]);
}

inline void route(const Call& call, const Worker& worker) {
  const RouteOptions options = route_options(call);
  const Tensor &logits = call.operands[0], *bias = call.num_operands > 1 ? &call.operands[1] : nullptr;
  const std::int64_t N = call.out.width();
  const RouteScratch own(call.scratch + worker.index * RouteScratch::bytes(N), N);
  for (std::int64_t t = worker.first(logits.rows()); t < worker.last(logits.rows()); ++t) {
    if (call.out.dtype == DType::bf16)
      route_token(logits.at<const bf16>(t), bias, options, N, own, call.out.at<bf16>(t));
    else
      route_token(logits.at<const float>(t), bias, options, N, own, call.out.at<float>(t));
  }
}
