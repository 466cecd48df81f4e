// exp, tanh and what activations are made of, on vectors. Included inside an instruction set's namespace.

// Within about one unit of the last place; 0 below -104, inf above 89. NaN stays: the instructions take their second
// operand then.
inline Vec exponential(Vec x) {
  const Vec bounded = minimum(broadcast(89.0f), maximum(broadcast(-104.0f), x));
  const Vec n = round_to_integer(bounded * broadcast(1.44269504f));
  // ln 2 in two parts, so that n * ln 2 is exact where it matters.
  const Vec r = fma(n, broadcast(-1.42860677e-6f), fma(n, broadcast(-0.693145752f), bounded));
  Vec p = broadcast(1.0f / 5040);
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p * r, r, r) + broadcast(1.0f);
  return times_power_of_two(p, n);
}

inline Vec hyperbolic_tangent(Vec x) {
  const Vec magnitude = absolute(x);
  // Near zero the series: of the other form only the absolute error would be small.
  const Vec square = x * x;
  Vec p = broadcast(21844.0f / 6081075);
  p = fma(p, square, broadcast(-1382.0f / 155925));
  p = fma(p, square, broadcast(62.0f / 2835));
  p = fma(p, square, broadcast(-17.0f / 315));
  p = fma(p, square, broadcast(2.0f / 15));
  p = fma(p, square, broadcast(-1.0f / 3));
  const Vec small = fma(p * square, x, x);
  const Vec large = broadcast(1.0f) - divide(broadcast(2.0f), exponential(magnitude + magnitude) + broadcast(1.0f));
  return where_less(magnitude, broadcast(0.5f), small, with_sign_of(large, x));
}

inline Vec silu(Vec x) { return divide(x, broadcast(1.0f) + exponential(zero() - x)); }

inline Vec gelu_tanh(Vec x) {
  const Vec inner = broadcast(0.79788456f) * fma(x * x * x, broadcast(0.044715f), x);
  const Vec half = broadcast(0.5f) * x;
  return fma(half, hyperbolic_tangent(inner), half);
}

inline Vec gelu(Vec x) {
  alignas(64) float each[lanes];
  store(each, x);
  for (float& value : each) value = 0.5f * value * (1.0f + std::erf(value * 0.70710678f));
  return load(each);
}
