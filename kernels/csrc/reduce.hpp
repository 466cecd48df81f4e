// Numbers of several ranks to one, in the order of the ranks, and the collectives that do so. Included inside an
// instruction set's namespace.

template <class Element>
void sum_floats(const Element* const* parts, int num_parts, Element* to, std::int64_t count) {
  const auto sum_of = [&](const auto& load_at) {
    Vec total = load_at(parts[0]);
    for (int i = 1; i < num_parts; ++i) total = total + load_at(parts[i]);
    return total;
  };
  std::int64_t e = 0;
  for (; e + lanes <= count; e += lanes) store(to + e, sum_of([&](const Element* part) { return load(part + e); }));
  const int rest = static_cast<int>(count - e);
  if (rest) store_part(to + e, sum_of([&](const Element* part) { return load_part(part + e, rest); }), rest);
}

template <class Element, class Function>
void reduce_each(const Element* const* parts, int num_parts, Element* to, std::int64_t count, const Function& f) {
  for (std::int64_t e = 0; e < count; ++e) {
    Element total = parts[0][e];
    for (int i = 1; i < num_parts; ++i) total = f(total, parts[i][e]);
    to[e] = total;
  }
}

inline void reduce_parts(DType dtype, Reduction reduction, const std::byte* const* parts, int num_parts, std::byte* to,
                         std::int64_t count) {
  const auto run = [&]<class Element>(Element) {
    auto* typed = reinterpret_cast<const Element* const*>(parts);
    auto* out = reinterpret_cast<Element*>(to);
    constexpr bool floats = std::is_same_v<Element, float> || std::is_same_v<Element, bf16>;
    if (reduction == Reduction::max) {
      const auto greater = [](Element x, Element y) {
        if constexpr (floats)
          return std::isnan(widen(y)) || widen(y) > widen(x) ? y : x;  // NaN stays, wherever it is
        else
          return y > x ? y : x;
      };
      reduce_each(typed, num_parts, out, count, greater);
    } else if constexpr (floats) {
      sum_floats(typed, num_parts, out, count);
    } else {
      reduce_each(typed, num_parts, out, count, [](Element x, Element y) { return static_cast<Element>(x + y); });
    }
  };
  switch (dtype) {
    case DType::f32:
      return run(float{});
    case DType::bf16:
      return run(bf16{});
    case DType::i32:
      return run(std::int32_t{});
    case DType::i64:
      return run(std::int64_t{});
    case DType::u8:
      return run(std::uint8_t{});
    case DType::f8e4m3:  // of caches alone
      break;
  }
}

inline void all_reduce(const Call& call, const Worker& worker) { tsk::all_reduce(call, worker, reduce_parts); }
inline void reduce_scatter(const Call& call, const Worker& worker) { tsk::reduce_scatter(call, worker, reduce_parts); }
