module A(x: [T@, D]) -> [D] {}
