type X = 3
