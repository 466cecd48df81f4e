// Gemma 2: norms on both sides of each block, local and global layers in turn, soft caps on scores and logits.
model Gemma2ForCausalLM

config {                                 // read from the checkpoint's config.json; defaults after `??`
  D       = hidden_size
  L       = num_hidden_layers
  V       = vocab_size
  F       = intermediate_size
  K       = num_key_value_heads
  G       = num_attention_heads / K      // query heads per key/value head
  E       = head_dim
  W       = sliding_window
  eps     = rms_norm_eps
  kinds   = layer_types ?? none          // older configs: each second layer is global
  scale   = (query_pre_attn_scalar ?? E) ** -0.5
  cap     = attn_logit_softcapping ?? 0  // of the scores
  final   = final_logit_softcapping ?? 0
  theta   = rope_theta ?? rope_parameters.rope_theta ?? 10000.0
  scaling = rope_scaling ?? rope_parameters ?? none

  require (hidden_activation ?? hidden_act ?? "gelu_pytorch_tanh") == "gelu_pytorch_tanh"
  require !(use_bidirectional_attention ?? false) && !(attention_bias ?? false)
}

mesh {                               // axis sizes come from the command line: --mesh tp=8
  tp = kv * q where kv = gcd(K, tp)  // more ranks than K/V heads: K and V repeat over q, by type
}

module Attention(x: [T, D], positions: i32[T], window) -> [T, D | sum tp] {
  weight wq: [(K@kv, G@q, E), D] = "q_proj.weight"
  weight wk: [(K@kv, E), D]      = "k_proj.weight"
  weight wv: [(K@kv, E), D]      = "v_proj.weight"
  weight wo: [D, (K@kv, G@q, E)] = "o_proj.weight"
  cache  kv: paged [2, K@kv, E] window window

  let q = rope(linear(x, wq), positions, theta = theta, scaling = scaling)
  let k = rope(linear(x, wk), positions, theta = theta, scaling = scaling)
  let v = linear(x, wv)
  return linear(attention(q, kv.append(k, v), scale = scale, softcap = cap), wo)
}

module MLP(x: [T, D]) -> [T, D | sum tp] {
  weight gate: [F@tp, D] = "gate_proj.weight"
  weight up:   [F@tp, D] = "up_proj.weight"
  weight down: [D, F@tp] = "down_proj.weight"
  return linear(gelu_tanh(linear(x, gate)) * linear(x, up), down)
}

module Layer(x: [T, D], positions: i32[T], window) -> [T, D] {
  weight n1: [D] = "input_layernorm.weight"
  weight n2: [D] = "post_attention_layernorm.weight"
  weight n3: [D] = "pre_feedforward_layernorm.weight"
  weight n4: [D] = "post_feedforward_layernorm.weight"
  let a = Attention<"self_attn">(rms_norm(x, n1, eps, offset = 1.0), positions, window)
  let h = x + rms_norm(a, n2, eps, offset = 1.0)  // the norm needs the sum: one all-reduce
  let m = MLP<"mlp">(rms_norm(h, n3, eps, offset = 1.0))
  return h + rms_norm(m, n4, eps, offset = 1.0)   // and one
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@tp] {
  weight embed: [V@tp, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@tp, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? true
  let x = embedding(ids, embed) * D ** 0.5                               // each rank has some rows: masked, then a sum
  for i in 0..L carry x {
    let is_local = if kinds == none then i % 2 == 0 else kinds[i] == "sliding_attention"
    x = Layer<"model.layers.{i}">(x, positions, window = if is_local then W else 0)
  }
  let logits = linear(rms_norm(x[last], norm, eps, offset = 1.0), head)  // the last rows are taken before the matmul
  if final > 0 { logits = softcap(logits, final) }
  return logits
}
