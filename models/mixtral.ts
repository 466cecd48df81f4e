// Mixtral: Mistral with a mixture of experts in place of every MLP.
model MixtralForCausalLM

config {                             // read from the checkpoint's config.json; defaults after `??`
  D       = hidden_size
  L       = num_hidden_layers
  V       = vocab_size
  N       = num_local_experts
  I       = intermediate_size
  top     = num_experts_per_tok
  K       = num_key_value_heads ?? num_attention_heads
  G       = num_attention_heads / K  // query heads per key/value head
  E       = head_dim ?? D / (K * G)
  W       = sliding_window ?? 0
  eps     = rms_norm_eps
  theta   = rope_theta ?? rope_parameters.rope_theta ?? 1000000.0
  scaling = rope_scaling ?? rope_parameters ?? none

  require (hidden_act ?? "silu") == "silu"
}

mesh {                               // axis sizes come from the command line: --mesh tp=8
  tp = kv * q where kv = gcd(K, tp)  // more ranks than K/V heads: K and V repeat over q, by type
}

module Attention(x: [T, D], positions: i32[T]) -> [T, D | sum tp] {
  weight wq: [(K@kv, G@q, E), D] = "q_proj.weight"
  weight wk: [(K@kv, E), D]      = "k_proj.weight"
  weight wv: [(K@kv, E), D]      = "v_proj.weight"
  weight wo: [D, (K@kv, G@q, E)] = "o_proj.weight"
  cache  kv: paged [2, K@kv, E] window W

  let q = rope(linear(x, wq), positions, theta = theta, scaling = scaling)  // [T, K@kv, G@q, E]
  let k = rope(linear(x, wk), positions, theta = theta, scaling = scaling)
  let v = linear(x, wv)
  return linear(attention(q, kv.append(k, v), scale = E ** -0.5), wo)
}

module Mixture(x: [T, D]) -> [T, D | sum tp] {
  weight router: [N, D]       = "gate.weight"
  weight gate:   [N@tp, I, D] = "experts.{N}.w1.weight"
  weight up:     [N@tp, I, D] = "experts.{N}.w3.weight"
  weight down:   [N@tp, D, I] = "experts.{N}.w2.weight"
  let chosen = route(linear(x, router), top_k = top)  // the chosen ones' softmax
  return experts(x, chosen, gate, up, down)
}

module Layer(x: [T, D], positions: i32[T]) -> [T, D] {
  weight n1: [D] = "input_layernorm.weight"
  weight n2: [D] = "post_attention_layernorm.weight"
  let h = x + Attention<"self_attn">(rms_norm(x, n1, eps), positions)  // a pending sum meets the residual:
  return h + Mixture<"block_sparse_moe">(rms_norm(h, n2, eps))         // one all-reduce each
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@tp] {
  weight embed: [V@tp, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@tp, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? false
  let x = embedding(ids, embed)                      // each rank has some rows: masked, then a sum
  for i in 0..L carry x { x = Layer<"model.layers.{i}">(x, positions) }
  return linear(rms_norm(x[last], norm, eps), head)  // the last rows are taken before the matmul
}
