config {
  a = 3 /* b */
}
