// mesh: tp=2
// A type on a `let` pins the value: reduced here, though the boundary would take the pending sum.
config { D = 32  F = 64  V = 64 }
mesh { tp }

module Inner(x: [T, F@tp]) -> [T, D | sum tp] {
  weight down: [D, F@tp] = "down"
  let h: [T, D] = linear(x, down)
  return h
}

module Block(x: [T, D]) -> [T, D] {
  weight up: [F@tp, D] = "up"
  return Inner<"inner">(linear(x, up))
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  return Block<"block">(embedding(ids, embed))[last]
}
