model A
config { D = d  H = h  E = e }
mesh { tp }
module M(x: [T, D]) -> [T, D | sum tp] {
  weight q: [(H@tp, E), D] = "qkv.weight"   from 0
  weight k: [(H@tp, E), D] = "qkv.weight" from H*E
  weight b: [(H@tp, E)] = "q.bias"   when   biased ?? false
  weight o: [D, (H@tp, E)] = "o.weight"
  weight c: [D | sum tp] = "o.bias" when biased ?? false   // a summand
  weight t: [D, (H@tp, E)] = "t.weight" from D tied o when H > 1
  return linear(linear(x, q, b) + linear(x, k), o, c)
}
