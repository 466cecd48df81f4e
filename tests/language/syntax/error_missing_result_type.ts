module A(x: [T, D]) {
  return x
}
