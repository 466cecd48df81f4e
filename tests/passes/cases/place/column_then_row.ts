// mesh: tp=2
// Column-parallel, then row-parallel: nothing between them, one all-reduce after, which the boundary asks for.
config { D = 32  F = 64  V = 64 }
mesh { tp }

module Block(x: [T, D]) -> [T, D] {
  weight gate: [F@tp, D] = "gate"
  weight up:   [F@tp, D] = "up"
  weight down: [D, F@tp] = "down"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  return Block<"block">(embedding(ids, embed))[last]
}
