// What choosing from logits, and normalizing them, moves between ranks: measured by plans.py.
config {
  D = hidden_size
  V = vocab_size
}

mesh { tp }

module Argmax(x: [S, V@tp]) -> i32[S] {
  return argmax(x)
}

module TopK(x: [S, V@tp]) -> f32[S, 50] {
  let values, indices = top_k(x, 50)
  return values
}

module Softmax(x: [S, V@tp]) -> f32[S, V@tp] {
  return softmax(x)
}

entry decode(ids: i32[T], last: i32[S]) -> i32[S] {
  weight embed: [V@tp, D] = "embed"
  let logits = linear(embedding(ids, embed)[last], embed)
  let p = Softmax(logits)
  let best = TopK(logits)
  return Argmax(logits)
}
