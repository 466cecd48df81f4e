module A(x: [T, D]) -> [T, D] {
  if a and b { return x }
}
