// mesh: tp=4
// Heads are dimensions of values and groups in weights: `split` after the first matmul, `merge` before the second.
config { D = 32  K = 2  G = 2  E = 8  V = 64 }
mesh { tp = kv * q where kv = gcd(K, tp) }

module Block(x: [T, D], positions: i32[T]) -> [T, D | sum tp] {
  weight wq: [(K@kv, G@q, E), D] = "q"
  weight wk: [(K@kv, E), D]      = "k"
  weight wo: [D, (K@kv, G@q, E)] = "o"
  cache  kv: paged [2, K@kv, E] window 16
  let k = rope(linear(x, wk), positions)
  return linear(attention(rope(linear(x, wq), positions), kv.append(k, k), scale = 0.5), wo)
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  let x = embedding(ids, embed)
  let y = x + Block<"block">(x, positions)
  return y[last]
}
