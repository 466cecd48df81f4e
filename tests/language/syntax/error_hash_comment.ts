module A(x: [T, D]) -> [T, D] {
  # hi
}
