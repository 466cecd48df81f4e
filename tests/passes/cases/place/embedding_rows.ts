// mesh: tp=2
// A table split by rows gives a pending sum, of which only the last rows are reduced; tied, it also gives the logits' blocks.
config { D = 32  V = 64 }
mesh { tp }

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V] {
  weight embed: [V@tp, D] = "embed"
  weight head:  [V@tp, D] = "head" tied embed
  return linear(embedding(ids, embed)[last], head)
}
