// OLMo 2: norms after each block instead of before it, and of all queries and all keys of a token together.
model Olmo2ForCausalLM

config {                             // read from the checkpoint's config.json; defaults after `??`
  D       = hidden_size
  L       = num_hidden_layers
  V       = vocab_size
  F       = intermediate_size
  K       = num_key_value_heads ?? num_attention_heads
  G       = num_attention_heads / K  // query heads per key/value head
  E       = head_dim ?? D / (K * G)
  eps     = rms_norm_eps
  theta   = rope_theta ?? rope_parameters.rope_theta ?? 10000.0
  scaling = rope_scaling ?? rope_parameters ?? none

  require (hidden_act ?? "silu") == "silu" && !(attention_bias ?? false)
}

mesh {                               // axis sizes come from the command line: --mesh tp=8
  tp = kv * q where kv = gcd(K, tp)  // more ranks than K/V heads: K and V repeat over q, by type
}

module Attention(x: [T, D], positions: i32[T]) -> [T, D | sum tp] {
  weight wq: [(K@kv, G@q, E), D] = "q_proj.weight"
  weight wk: [(K@kv, E), D]      = "k_proj.weight"
  weight wv: [(K@kv, E), D]      = "v_proj.weight"
  weight wo: [D, (K@kv, G@q, E)] = "o_proj.weight"
  weight qn: [(K@kv, G@q, E)]    = "q_norm.weight"
  weight kn: [(K@kv, E)]         = "k_norm.weight"
  cache  kv: paged [2, K@kv, E]

  let q = rms_norm_rows(linear(x, wq), qn, eps)  // ranks exchange a number for each token, the sum of squares
  let k = rms_norm_rows(linear(x, wk), kn, eps)
  let turned = rope(q, positions, theta = theta, scaling = scaling)
  let rows = kv.append(rope(k, positions, theta = theta, scaling = scaling), linear(x, wv))
  return linear(attention(turned, rows, scale = E ** -0.5), wo)
}

module MLP(x: [T, D]) -> [T, D | sum tp] {
  weight gate: [F@tp, D] = "gate_proj.weight"
  weight up:   [F@tp, D] = "up_proj.weight"
  weight down: [D, F@tp] = "down_proj.weight"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

module Layer(x: [T, D], positions: i32[T]) -> [T, D] {
  weight n1: [D] = "post_attention_layernorm.weight"
  weight n2: [D] = "post_feedforward_layernorm.weight"
  let h = x + rms_norm(Attention<"self_attn">(x, positions), n1, eps)  // the norm needs the sum: one all-reduce
  return h + rms_norm(MLP<"mlp">(h), n2, eps)                          // and one
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@tp] {
  weight embed: [V@tp, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@tp, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? false
  let x = embedding(ids, embed)                      // each rank has some rows: masked, then a sum
  for i in 0..L carry x { x = Layer<"model.layers.{i}">(x, positions) }
  return linear(rms_norm(x[last], norm, eps), head)  // the last rows are taken before the matmul
}
