model A, A
config {
  D = a
  D = b
}
mesh { tp tp }
module A(x: [T], x: [T]) -> [T] {
  weight w: [D] = "a"
  cache w: paged [2]
  if a { weight b: [D] = "b" } else { weight b: [D] = "c" }
  weight b: [D] = "d"
  return f(k = 1, k = 2)
}
entry A(x) -> [T] {}
