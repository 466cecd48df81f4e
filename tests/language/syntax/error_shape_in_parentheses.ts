module A(x: (T, D)) -> [T] {}
