module A(x: [T, D]) -> [T, D] {
  for i in 0..L { x = x }
}
