// gpt-oss: attention with sinks, each second layer within a window, mixtures of experts whose gates are bounded.
model GptOssForCausalLM

config {                             // read from the checkpoint's config.json; defaults after `??`
  D       = hidden_size
  L       = num_hidden_layers
  V       = vocab_size
  N       = num_local_experts
  F       = intermediate_size
  top     = num_experts_per_tok
  alpha   = swiglu_alpha ?? 1.702
  limit   = swiglu_limit ?? 7.0
  K       = num_key_value_heads
  G       = num_attention_heads / K  // query heads per key/value head
  E       = head_dim
  W       = sliding_window
  kinds   = layer_types ?? none
  eps     = rms_norm_eps ?? 1e-5
  theta   = rope_theta ?? rope_parameters.rope_theta ?? 150000.0
  scaling = rope_scaling ?? rope_parameters ?? none

  require attention_bias ?? true
}

mesh {
  dp                                 // sequences: each of its ranks has some of them, with their pages
  tp = kv * q where kv = gcd(K, tp)  // heads; more ranks than K/V heads: K and V repeat over q, by type
  ep = dp * tp                       // experts and vocabulary: all ranks
}

module Attention(x: [T@dp, D], positions: i32[T], window) -> [T@dp, D | sum tp] {
  weight wq:    [(K@kv, G@q, E), D] = "q_proj.weight"
  weight wk:    [(K@kv, E), D]      = "k_proj.weight"
  weight wv:    [(K@kv, E), D]      = "v_proj.weight"
  weight wo:    [D, (K@kv, G@q, E)] = "o_proj.weight"
  weight bq:    [(K@kv, G@q, E)]    = "q_proj.bias"
  weight bk:    [(K@kv, E)]         = "k_proj.bias"
  weight bv:    [(K@kv, E)]         = "v_proj.bias"
  weight bo:    [D | sum tp]        = "o_proj.bias"  // the first rank adds it
  weight sinks: [(K@kv, G@q)]       = "sinks"
  cache  kv:    paged@dp [2, K@kv, E] window window

  let q = rope(linear(x, wq, bq), positions, theta = theta, scaling = scaling)  // [T, K@kv, G@q, E]
  let k = rope(linear(x, wk, bk), positions, theta = theta, scaling = scaling)
  let v = linear(x, wv, bv)
  return linear(sink_attention(q, kv.append(k, v), sinks, scale = E ** -0.5), wo, bo)
}

module Mixture(x: [T, D]) -> [T, D | sum ep] {
  weight router:      [N, D]       = "router.weight"
  weight router_bias: [N]          = "router.bias"
  weight gate:        [N@ep, F, D] = "experts.gate_up_proj[N, D, (F, 0 of 2)]"  // a gate and what it gates lie side by side
  weight up:          [N@ep, F, D] = "experts.gate_up_proj[N, D, (F, 1 of 2)]"
  weight down:        [N@ep, D, F] = "experts.down_proj[N, F, D]"
  weight gate_bias:   [N@ep, F]    = "experts.gate_up_proj_bias[N, (F, 0 of 2)]"
  weight up_bias:     [N@ep, F]    = "experts.gate_up_proj_bias[N, (F, 1 of 2)]"
  weight down_bias:   [N@ep, D]    = "experts.down_proj_bias"
  let chosen = route(linear(x, router, router_bias), top_k = top)
  return experts(x, chosen, gate, up, down, gate_bias, up_bias, down_bias, alpha = alpha, limit = limit, offset = 1.0)
}

module Layer(x: [T@dp, D], positions: i32[T], window) -> [T@dp, D] {
  weight n1: [D] = "input_layernorm.weight"
  weight n2: [D] = "post_attention_layernorm.weight"
  let h = x + Attention<"self_attn">(rms_norm(x, n1, eps), positions, window)
  return h + Mixture<"mlp">(rms_norm(h, n2, eps))
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@ep] {
  weight embed: [V@ep, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@ep, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? false
  let x = embedding(ids, embed)
  for i in 0..L carry x {
    let is_local = if kinds == none then i % 2 == 0 else kinds[i] == "sliding_attention"
    x = Layer<"model.layers.{i}">(x, positions, window = if is_local then W else 0)
  }
  return linear(rms_norm(x[last], norm, eps), head)
}
