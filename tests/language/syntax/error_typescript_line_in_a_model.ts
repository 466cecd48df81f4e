model A
const b = 3
