// mesh: tp=2
// A norm over a split dimension has no rule: its input is gathered, once for the norm and the residual.
config { D = 32  V = 64 }
mesh { tp }

module Block(x: [T, D@tp]) -> [T, D] {
  weight n: [D] = "norm"
  return x + rms_norm(x, n, 1e-6)
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  return Block<"block">(embedding(ids, embed))[last]
}
