config {
  a = 3
  cache = b
}
