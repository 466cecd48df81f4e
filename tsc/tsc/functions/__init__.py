"""The functions of the language, one family a file: each with the shape of its result and its signature."""
