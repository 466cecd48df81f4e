module A(x: [T, D]) -> [T, D] {
  return A<p>(x)
}
