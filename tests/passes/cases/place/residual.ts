// mesh: tp=4
// Each branch is normalized before the next reads it, so each costs an all-reduce, at the residual.
config { D = 32  F = 64  V = 64 }
mesh { tp }

module Mixer(x: [T, D]) -> [T, D | sum tp] {
  weight up:   [F@tp, D] = "up"
  weight down: [D, F@tp] = "down"
  return linear(silu(linear(x, up)), down)
}

module Block(x: [T, D]) -> [T, D] {
  weight n1: [D] = "n1"
  weight n2: [D] = "n2"
  let h = x + Mixer<"attention">(rms_norm(x, n1, 1e-6))
  return h + Mixer<"mlp">(rms_norm(h, n2, 1e-6))
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  return Block<"block">(embedding(ids, embed))[last]
}
