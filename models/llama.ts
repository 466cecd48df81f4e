// Llama-family dense decoders: Llama 3, Mistral, SmolLM2.
model LlamaForCausalLM, MistralForCausalLM, LlamaModel, MistralModel

config {                             // read from the checkpoint's config.json; defaults after `??`
  D       = hidden_size
  L       = num_hidden_layers
  V       = vocab_size
  F       = intermediate_size
  K       = num_key_value_heads ?? num_attention_heads
  G       = num_attention_heads / K  // query heads per key/value head
  E       = head_dim ?? D / (K * G)
  W       = sliding_window ?? 0
  eps     = rms_norm_eps
  theta   = rope_theta ?? rope_parameters.rope_theta ?? 10000.0
  scaling = rope_scaling ?? rope_parameters ?? none
  biased  = attention_bias ?? false

  require (hidden_act ?? "silu") == "silu" && (partial_rotary_factor ?? 1.0) == 1.0 && !(mlp_bias ?? false)
}

mesh {                               // axis sizes come from the command line: --mesh tp=8
  tp = kv * q where kv = gcd(K, tp)  // more ranks than K/V heads: K and V repeat over q, by type
}

module Attention(x: [T, D], positions: i32[T]) -> [T, D | sum tp] {
  weight wq: [(K@kv, G@q, E), D] = "q_proj.weight"
  weight wk: [(K@kv, E), D]      = "k_proj.weight"
  weight wv: [(K@kv, E), D]      = "v_proj.weight"
  weight bq: [(K@kv, G@q, E)]    = "q_proj.bias" when biased
  weight bk: [(K@kv, E)]         = "k_proj.bias" when biased
  weight bv: [(K@kv, E)]         = "v_proj.bias" when biased
  weight wo: [D, (K@kv, G@q, E)] = "o_proj.weight"
  weight bo: [D | sum tp]        = "o_proj.bias" when biased
  cache  kv: paged [2, K@kv, E] window W

  let q = rope(linear(x, wq, bq), positions, theta = theta, scaling = scaling)  // [T, K@kv, G@q, E]
  let k = rope(linear(x, wk, bk), positions, theta = theta, scaling = scaling)
  let v = linear(x, wv, bv)
  return linear(attention(q, kv.append(k, v), scale = E ** -0.5), wo, bo)
}

module MLP(x: [T, D]) -> [T, D | sum tp] {
  weight gate: [F@tp, D] = "gate_proj.weight"
  weight up:   [F@tp, D] = "up_proj.weight"
  weight down: [D, F@tp] = "down_proj.weight"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

module Layer(x: [T, D], positions: i32[T]) -> [T, D] {
  weight n1: [D] = "input_layernorm.weight"
  weight n2: [D] = "post_attention_layernorm.weight"
  let h = x + Attention<"self_attn">(rms_norm(x, n1, eps), positions)  // a pending sum meets the residual:
  return h + MLP<"mlp">(rms_norm(h, n2, eps))                          // one all-reduce each
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@tp] {
  weight embed: [V@tp, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@tp, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? false
  let x = embedding(ids, embed)                      // each rank has some rows: masked, then a sum
  for i in 0..L carry x { x = Layer<"model.layers.{i}">(x, positions) }
  return linear(rms_norm(x[last], norm, eps), head)  // the last rows are taken before the matmul
}

entry embed(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V@tp, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  let x = embedding(ids, embed)
  for i in 0..L carry x { x = Layer<"model.layers.{i}">(x, positions) }
  return rms_norm(x[last], norm, eps)
}
