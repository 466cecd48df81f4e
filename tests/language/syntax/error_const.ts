module A(x: [T, D]) -> [T, D] {
  const q = 3
}
