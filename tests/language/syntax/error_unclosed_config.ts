config {
  a = 3

module A(x: [T]) -> [T] {
}
