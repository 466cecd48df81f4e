// mesh: tp=4
// A table split by rows: each rank looks its own up by its coordinate; a sum; and the logits are gathered for sampling.
config { D = 32  V = 64 }
mesh { tp }

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@tp] {
  weight embed: [V@tp, D] = "embed"
  weight norm:  [D]       = "norm"
  weight head:  [V@tp, D] = "head" tied embed
  return linear(rms_norm(embedding(ids, embed)[last], norm, 1e-6), head)
}
