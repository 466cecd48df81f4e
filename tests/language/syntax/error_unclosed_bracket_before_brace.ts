module A(x: [T, D]) -> [T, D] {
  return f(x}
}
