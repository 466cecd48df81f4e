// mesh: tp=4
// The same block as its author may write it, left to right: (x + a) + m. Two all-reduces would be the greedy plan; x kept on the
// first rank makes the whole sum pending, with one all-reduce.
config { D = 32  F = 64  V = 64 }
mesh { tp }

module Mixer(x: [T, D]) -> [T, D | sum tp] {
  weight up:   [F@tp, D] = "up"
  weight down: [D, F@tp] = "down"
  return linear(silu(linear(x, up)), down)
}

module Block(x: [T, D]) -> [T, D] {
  weight n: [D] = "norm"
  let h = rms_norm(x, n, 1e-6)
  return x + Mixer<"attention">(h) + Mixer<"mlp">(h)
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  return Block<"block">(embedding(ids, embed))[last]
}
