// mesh: tp=4
// A sum that is pending on both leaves of a product axis is one all-reduce over it.
config { D = 32  K = 2  E = 8  G = 4  V = 64 }
mesh { tp = kv * q where kv = gcd(K, tp) }

module Block(x: [T, D]) -> [T, D] {
  weight wq: [(K@kv, G@q, E), D] = "q"
  weight wo: [D, (K@kv, G@q, E)] = "o"
  return linear(linear(x, wq), wo)
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  return Block<"block">(embedding(ids, embed))[last]
}
