module A(x: bf16(T, D)) -> [T] {}
