module A(x: [T, D]) -> [T, D] {
  return x if a else b
}
