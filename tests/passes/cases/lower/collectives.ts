// mesh: tp=2
// Collectives stand where the plan has them; what is inlined is found below its prefix; a module called twice is one graph.
config { D = 32  F = 64  V = 64 }
mesh { tp }

module MLP(x: [T, D]) -> [T, D | sum tp] {
  weight up:   [F@tp, D] = "up"
  weight down: [D, F@tp] = "down"
  return linear(silu(linear(x, up)), down)
}

module Layer(x: [T, D]) -> [T, D] {
  weight n: [D] = "norm"
  return x + MLP<"mlp">(rms_norm(x, n, 1e-6))
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D@tp] = "embed"
  let x = embedding(ids, embed)
  for i in 0..2 carry x { x = Layer<"layers.{i}">(x) }
  return x[last]
}
