module A(x: [T, D]) -> [T, D] {
  return x $
}
