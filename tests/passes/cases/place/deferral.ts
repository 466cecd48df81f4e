// mesh: tp=4
// A pending sum passes what is linear, scaling and taking rows: the all-reduce is of S rows, not of T.
config { D = 32  F = 64  V = 64 }
mesh { tp }

module Block(x: [T, D]) -> [T, D | sum tp] {
  weight up:   [F@tp, D] = "up"
  weight down: [D, F@tp] = "down"
  return linear(silu(linear(x, up)), down)
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  let x = Block<"block">(embedding(ids, embed)) * 0.5
  return x[last]
}
