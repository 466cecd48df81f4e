config {
  a = 3 b
  c = 4
}
