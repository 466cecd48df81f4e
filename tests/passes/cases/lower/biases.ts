// mesh: tp=2
// A bias that meets a pending sum is a summand of its own, parts of a tensor are weights, and without its condition a bias is not there.
config { D = 32  H = 4  E = 8  V = 64  biased = true }
mesh { tp }

module Block(x: [T, D], positions: i32[T]) -> [T, D | sum tp] {
  weight w1: [(H@tp, E), D] = "qkv" from 0
  weight w2: [(H@tp, E), D] = "qkv" from H * E
  weight b1: [(H@tp, E)]    = "q.bias" when biased
  weight b2: [(H@tp, E)]    = "k.bias" when !biased
  weight wo: [D, (H@tp, E)] = "o"
  weight bo: [D | sum tp]   = "o.bias" when biased
  let turned = rope(linear(x, w1, b1), positions, fraction = 0.5)
  return linear(turned + linear(x, w2, b2), wo, bo)
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V, D] = "embed"
  let x = embedding(ids, embed)
  let y = x + Block<"block">(x, positions)
  return y[last]
}
