config {
  a = b +
}
