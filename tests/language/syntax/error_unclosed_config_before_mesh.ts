config {
  a = 3
mesh { tp }
