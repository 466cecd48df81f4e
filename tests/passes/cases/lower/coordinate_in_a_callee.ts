// mesh: tp=4
// A coordinate that a callee reads is an input of it, which its caller passes on.
config { D = 32  V = 64 }
mesh { tp }

module Embed(ids: i32[T]) -> [T, D | sum tp] {
  weight table: [V@tp, D] = "table"
  return embedding(ids, table)
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  return Embed<"embed">(ids)[last]
}
