// A decoder whose ranks are `dp` times `tp`: attention by sequences over dp and by heads over tp, the rest over all of them.
model DataParallelForCausalLM

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
}

mesh {                               // axis sizes come from the command line: --mesh dp=2,tp=4
  dp
  tp = kv * q where kv = gcd(K, tp)  // more ranks than K/V heads: K and V repeat over q, by type
  ep = dp * tp                       // all of them
}

module Attention(x: [T@dp, D], positions: i32[T]) -> [T@dp, D | sum tp] {
  weight wq: [(K@kv, G@q, E), D] = "q_proj.weight"
  weight wk: [(K@kv, E), D]      = "k_proj.weight"
  weight wv: [(K@kv, E), D]      = "v_proj.weight"
  weight wo: [D, (K@kv, G@q, E)] = "o_proj.weight"
  cache  kv: paged@dp [2, K@kv, E] window W  // a sequence's pages are on the ranks that have its tokens

  let q = rope(linear(x, wq), positions, theta = theta, scaling = scaling)  // [T, K@kv, G@q, E]
  let k = rope(linear(x, wk), positions, theta = theta, scaling = scaling)
  let v = linear(x, wv)
  return linear(attention(q, kv.append(k, v), scale = E ** -0.5), wo)
}

module MLP(x: [T, D]) -> [T, D | sum ep] {
  weight gate: [F@ep, D] = "gate_proj.weight"
  weight up:   [F@ep, D] = "up_proj.weight"
  weight down: [D, F@ep] = "down_proj.weight"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

module Layer(x: [T@dp, D], positions: i32[T]) -> [T@dp, D] {
  weight n1: [D] = "input_layernorm.weight"
  weight n2: [D] = "post_attention_layernorm.weight"
  let h = x + Attention<"self_attn">(rms_norm(x, n1, eps), positions)
  return h + MLP<"mlp">(rms_norm(h, n2, eps))
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@ep] {
  weight embed: [V@ep, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@ep, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? false
  let x = embedding(ids, embed)
  for i in 0..L carry x { x = Layer<"model.layers.{i}">(x, positions) }
  return linear(rms_norm(x[last], norm, eps), head)  // the last rows are taken before the matmul
}
