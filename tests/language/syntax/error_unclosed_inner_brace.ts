module A(x: [T, D]) -> [T, D] {
  for i in 0..L carry x {
    x = f(x)
  return x
}

module B(x) -> [T] { return x }
