// Qwen2 and Qwen2.5 dense decoders: Llama with biases on queries, keys and values; later layers may be local.
model Qwen2ForCausalLM, Qwen2Model

config {                             // read from the checkpoint's config.json; defaults after `??`
  D       = hidden_size
  L       = num_hidden_layers
  V       = vocab_size
  F       = intermediate_size
  K       = num_key_value_heads ?? num_attention_heads
  G       = num_attention_heads / K  // query heads per key/value head
  E       = head_dim ?? D / (K * G)
  W       = if use_sliding_window ?? false then sliding_window ?? 0 else 0
  whole   = max_window_layers ?? L   // layers that see everything; those after them have the window
  kinds   = layer_types ?? none
  eps     = rms_norm_eps
  theta   = rope_theta ?? rope_parameters.rope_theta ?? 10000.0
  scaling = rope_scaling ?? rope_parameters ?? none

  require (hidden_act ?? "silu") == "silu"
}

mesh {                               // axis sizes come from the command line: --mesh tp=8
  tp = kv * q where kv = gcd(K, tp)  // more ranks than K/V heads: K and V repeat over q, by type
}

module Attention(x: [T, D], positions: i32[T], window) -> [T, D | sum tp] {
  weight wq: [(K@kv, G@q, E), D] = "q_proj.weight"
  weight wk: [(K@kv, E), D]      = "k_proj.weight"
  weight wv: [(K@kv, E), D]      = "v_proj.weight"
  weight bq: [(K@kv, G@q, E)]    = "q_proj.bias"
  weight bk: [(K@kv, E)]         = "k_proj.bias"
  weight bv: [(K@kv, E)]         = "v_proj.bias"
  weight wo: [D, (K@kv, G@q, E)] = "o_proj.weight"
  cache  kv: paged [2, K@kv, E] window window

  let q = rope(linear(x, wq, bq), positions, theta = theta, scaling = scaling)  // [T, K@kv, G@q, E]
  let k = rope(linear(x, wk, bk), positions, theta = theta, scaling = scaling)
  let v = linear(x, wv, bv)
  return linear(attention(q, kv.append(k, v), scale = E ** -0.5), wo)
}

module MLP(x: [T, D]) -> [T, D | sum tp] {
  weight gate: [F@tp, D] = "gate_proj.weight"
  weight up:   [F@tp, D] = "up_proj.weight"
  weight down: [D, F@tp] = "down_proj.weight"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

module Layer(x: [T, D], positions: i32[T], window) -> [T, D] {
  weight n1: [D] = "input_layernorm.weight"
  weight n2: [D] = "post_attention_layernorm.weight"
  let h = x + Attention<"self_attn">(rms_norm(x, n1, eps), positions, window)  // a pending sum meets the residual:
  return h + MLP<"mlp">(rms_norm(h, n2, eps))                                  // one all-reduce each
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@tp] {
  weight embed: [V@tp, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@tp, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? false
  let x = embedding(ids, embed)                      // each rank has some rows: masked, then a sum
  for i in 0..L carry x {
    let is_local = if kinds == none then i >= whole else kinds[i] == "sliding_attention"
    x = Layer<"model.layers.{i}">(x, positions, window = if is_local then W else 0)
  }
  return linear(rms_norm(x[last], norm, eps), head)  // the last rows are taken before the matmul
}

entry embed(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, D] {
  weight embed: [V@tp, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  let x = embedding(ids, embed)
  for i in 0..L carry x {
    let is_local = if kinds == none then i >= whole else kinds[i] == "sliding_attention"
    x = Layer<"model.layers.{i}">(x, positions, window = if is_local then W else 0)
  }
  return rms_norm(x[last], norm, eps)
}
