module A(x: [T, D]) -> [T, D] {
  weight w: [D] = foo
}
