// mesh: tp=1
// Caches of one window share slots and block tables; those without a window and those of another one have theirs.
config {
  D = 32
  K = 2
  G = 1
  E = 16
  V = 64
}

mesh { tp }

module Layer(x: [T, D], window) -> [T, D] {
  weight wq: [(K, G, E), D] = "q"
  weight wk: [(K, E), D]    = "k"
  weight wo: [D, (K, G, E)] = "o"
  cache  kv: paged [2, K, E] window window
  let slots_w4 = linear(x, wk)
  return linear(attention(linear(x, wq), kv.append(slots_w4, slots_w4), scale = 1.0), wo)
}

entry decode(ids: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  return Layer<"c">(Layer<"b">(Layer<"a">(embedding(ids, embed), 0), 4), 9)[last]
}
