// Choosing and normalizing within rows, in steps that ranks can share: see tskernels/rows.py, which says what a key is.
// Included inside an instruction set's namespace.

constexpr std::int64_t key_low = 0xffffffff;

inline std::int64_t key_of(float x, std::int64_t index) {
  const float number = std::isnan(x) ? NAN : x + 0.0f;  // one NaN, one zero
  std::int32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  const std::int64_t ordered = bits < 0 ? -static_cast<std::int64_t>(bits & 0x7fffffff) - 1 : bits;
  return ordered * (key_low + 1) + (key_low - index);
}

inline float number_of(std::int64_t key) {
  const std::int64_t ordered = key >> 32;
  const auto bits = static_cast<std::uint32_t>(ordered < 0 ? -(ordered + 1) + 0x80000000 : ordered);
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

template <class Function>
void with_element(DType dtype, const Function& f) {
  if (dtype == DType::bf16)
    f(bf16{});
  else
    f(float{});
}

// Calls f(vector of x, index of its number in `out` or `of_row`) for every vector of this worker's rows.
template <class Element, class Function>
void for_numbers(const Tensor& x, const Worker& worker, const Function& f) {
  const std::int64_t vectors = x.vectors();
  for (std::int64_t row = worker.first(x.rows()); row < worker.last(x.rows()); ++row)
    for (std::int64_t v = 0; v < vectors; ++v) f(vector_at<const Element>(x, row, v), row * vectors + v);
}

// (x [.., V]; shard) to i64[..]
inline void max_key_rows(const Call& call, const Worker& worker) {
  const Tensor& x = call.operands[0];
  const std::int64_t width = x.width(), first = static_cast<std::int64_t>(call.numbers[0]) * width;
  auto* out = call.out.at<std::int64_t>();
  with_element(x.dtype, [&]<class Element>(Element) {
    for_numbers<Element>(x, worker, [&](const Element* numbers, std::int64_t i) {
      const std::int32_t largest = index_of_largest(numbers, width);
      if (largest >= 0) {
        out[i] = key_of(widen(numbers[largest]), first + largest);
        return;
      }
      std::int64_t best = key_of(widen(numbers[0]), first);
      for (std::int64_t e = 1; e < width; ++e) {
        const std::int64_t key = key_of(widen(numbers[e]), first + e);
        best = key > best ? key : best;
      }
      out[i] = best;
    });
  });
}

// The `count` largest of the keys so far, largest first, with one more.
inline void insert_key(std::int64_t key, std::int64_t* best, std::int64_t num_best, std::int64_t count) {
  if (num_best == count && key <= best[count - 1]) return;
  std::int64_t place = num_best < count ? num_best : count - 1;
  for (; place > 0 && best[place - 1] < key; --place) best[place] = best[place - 1];
  best[place] = key;
}

// (x [.., B * width]; shard, k, width) to i64[.., B, k]
inline void top_keys_rows(const Call& call, const Worker& worker) {
  const Tensor& x = call.operands[0];
  const auto k = static_cast<std::int64_t>(call.numbers[1]), width = static_cast<std::int64_t>(call.numbers[2]);
  const std::int64_t num_blocks = x.width() / width, first = static_cast<std::int64_t>(call.numbers[0]) * x.width();
  auto* out = call.out.at<std::int64_t>();
  with_element(x.dtype, [&]<class Element>(Element) {
    for_numbers<Element>(x, worker, [&](const Element* numbers, std::int64_t i) {
      for (std::int64_t block = 0; block < num_blocks; ++block)
        for (std::int64_t e = 0; e < width; ++e) {
          const std::int64_t at = block * width + e;
          insert_key(key_of(widen(numbers[at]), first + at), out + (i * num_blocks + block) * k, e < k ? e : k, k);
        }
    });
  });
}

// (keys i64[.., B, k]) to i64[.., k]
inline void merge_keys_rows(const Call& call, const Worker& worker) {
  const Tensor& keys = call.operands[0];
  const std::int64_t k = keys.width(), given = keys.sizes[keys.dims - 2] * k;
  const std::int64_t lists = keys.row_elements() / given;
  for (std::int64_t row = worker.first(keys.rows()); row < worker.last(keys.rows()); ++row)
    for (std::int64_t list = 0; list < lists; ++list) {
      const auto* from = keys.at<const std::int64_t>(row) + list * given;
      auto* best = call.out.at<std::int64_t>(row) + list * k;
      for (std::int64_t e = 0; e < given; ++e) insert_key(from[e], best, e < k ? e : k, k);
    }
}

template <class To, class Function>
void each_key(const Call& call, const Worker& worker, const Function& f) {
  const Tensor& keys = call.operands[0];
  const std::int64_t count = keys.row_elements();
  for (std::int64_t row = worker.first(keys.rows()); row < worker.last(keys.rows()); ++row)
    for (std::int64_t e = 0; e < count; ++e) call.out.at<To>(row)[e] = f(keys.at<const std::int64_t>(row)[e]);
}

// (keys i64[..]) to i32[..]: -1 where the number is not finite.
inline void key_index_rows(const Call& call, const Worker& worker) {
  each_key<std::int32_t>(call, worker, [](std::int64_t key) {
    return std::isfinite(number_of(key)) ? static_cast<std::int32_t>(key_low - (key & key_low)) : -1;
  });
}
// (keys i64[..]) to f32[..]
inline void key_value_rows(const Call& call, const Worker& worker) { each_key<float>(call, worker, number_of); }

// (x [.., D]) to f32[..]; NaN where there is one.
inline void row_max_rows(const Call& call, const Worker& worker) {
  const std::int64_t width = call.operands[0].width();
  with_element(call.operands[0].dtype, [&]<class Element>(Element) {
    for_numbers<Element>(call.operands[0], worker, [&](const Element* x, std::int64_t i) {
      Vec most = broadcast(-INFINITY);
      unsigned nan = 0;
      std::int64_t e = 0;
      for (; e + lanes <= width; e += lanes) {
        const Vec value = load(x + e);
        most = maximum(most, value);
        nan |= nan_lanes(value);
      }
      float found = largest(most);
      for (; e < width; ++e) {
        found = widen(x[e]) > found ? widen(x[e]) : found;
        nan |= std::isnan(widen(x[e]));
      }
      call.out.at<float>()[i] = nan ? NAN : found;
    });
  });
}

// (x [.., D]) to f32[..]: a lane of partial sums, then a fixed tree.
inline void row_sum_rows(const Call& call, const Worker& worker) {
  const std::int64_t width = call.operands[0].width();
  with_element(call.operands[0].dtype, [&]<class Element>(Element) {
    for_numbers<Element>(call.operands[0], worker, [&](const Element* x, std::int64_t i) {
      Vec total = zero();
      std::int64_t e = 0;
      for (; e + lanes <= width; e += lanes) total = total + load(x + e);
      if (e < width) total = total + load_part(x + e, static_cast<int>(width - e));
      call.out.at<float>()[i] = sum(total);
    });
  });
}

// f(vector, number of the row) of x [.., D] and of_row f32[..] to f32[.., D].
template <class Function>
void with_number_of_row(const Call& call, const Worker& worker, const Function& f) {
  const std::int64_t width = call.operands[0].width();
  with_element(call.operands[0].dtype, [&]<class Element>(Element) {
    for_numbers<Element>(call.operands[0], worker, [&](const Element* x, std::int64_t i) {
      const Vec number = broadcast(call.operands[1].at<const float>()[i]);
      float* to = call.out.at<float>() + i * width;
      std::int64_t e = 0;
      for (; e + lanes <= width; e += lanes) store(to + e, f(load(x + e), number));
      const int rest = static_cast<int>(width - e);
      if (rest) store_part(to + e, f(load_part(x + e, rest), number), rest);
    });
  });
}
inline void exp_minus_rows(const Call& call, const Worker& worker) {
  with_number_of_row(call, worker, [](Vec x, Vec number) { return exponential(x - number); });
}
inline void divide_rows_of(const Call& call, const Worker& worker) {
  with_number_of_row(call, worker, [](Vec x, Vec number) { return divide(x, number); });
}
