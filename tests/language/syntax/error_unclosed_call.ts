module A(x: [T, D]) -> [T, D] {
  let a = f(x
  let b = 3
}
