// mesh: tp=1
// What is called like a step input is renamed, since those have names that follow from what they are: here a weight, a value, and a parameter `slots`
// that is given positions and must not be taken for where the cache appends.
config { D = 32  K = 2  E = 16  V = 64 }
mesh { tp }

module Layer(x: [T, K, E], slots: i32[T]) -> [T, K, E] {
  cache kv: paged [2, K, E]
  let k = rope(x, slots)
  let all = kv.append(k, x)
  return k + x
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight lengths: [V, D]      = "embed"
  weight wk:      [(K, E), D] = "k"
  weight wo:      [D, (K, E)] = "o"
  let tables = linear(embedding(ids, lengths), wk)
  return linear(Layer<"layer">(tables, positions), wo)[last]
}
