config {
  a =
}
