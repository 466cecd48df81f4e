// mesh: tp=4
// Two branches of one input, both pending sums: they are added as they are, and reduced once.
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
  return x + (Mixer<"attention">(h) + Mixer<"mlp">(h))
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  return Block<"block">(embedding(ids, embed))[last]
}
