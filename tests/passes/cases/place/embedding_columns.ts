// mesh: tp=2
// A table split by columns gives columns: they are gathered where whole rows are wanted.
config { D = 32  F = 64  V = 64 }
mesh { tp }

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D@tp] = "embed"
  weight norm:  [D]       = "norm"
  return rms_norm(embedding(ids, embed)[last], norm, 1e-6)
}
