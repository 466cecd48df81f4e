module A(x: [T, D]) -> [T, D] {
  if a:
    return x
}
