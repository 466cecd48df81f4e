// Llama-family dense decoders with an EAGLE-3 head, which `tsc compile --head` puts beside them.
model LlamaForCausalLMEagle3, MistralForCausalLMEagle3

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

  // of the head
  DDD    = 3 * D
  GV     = eagle3.draft_vocab_size ?? eagle3.vocab_size ?? V
  GF     = eagle3.intermediate_size ?? F
  GK     = eagle3.num_key_value_heads ?? K
  GG     = (eagle3.num_attention_heads ?? K * G) / GK
  GE     = eagle3.head_dim ?? D / (GK * GG)
  geps   = eagle3.rms_norm_eps ?? eps
  turns  = eagle3.rope_theta ?? theta
  scaled = eagle3.rope_scaling ?? eagle3.rope_parameters ?? none
  first  = min(2, L)  // it sees what comes into three layers
  middle = max(first, (L - L % 2) / 2)
  third  = max(middle, L - 3)

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
  weight fused: [D, DDD]  = "eagle3.fc.weight"
  let x = embedding(ids, embed)                                                       // each rank has some rows: masked, then a sum
  for i in 0..first carry x { x = Layer<"model.layers.{i}">(x, positions) }
  let low = x
  for i in first..middle carry x { x = Layer<"model.layers.{i}">(x, positions) }
  let mid = x
  for i in middle..third carry x { x = Layer<"model.layers.{i}">(x, positions) }
  let of_low, of_mid, of_high = split(fused, DDD, D, D, D)
  keep made: [T, D] = linear(low, of_low) + linear(mid, of_mid) + linear(x, of_high)  // for `draft`
  for i in third..L carry x { x = Layer<"model.layers.{i}">(x, positions) }
  return linear(rms_norm(x[last], norm, eps), head)                                   // the last rows are taken before the matmul
}

module GuessAttention(x: [T, D], made: [T, D], positions: i32[T]) -> [T, D | sum tp] {
  weight q_x:    [(GK@kv, GG@q, GE), D] = "q_proj.weight[(GK, GG, GE), (0 of 2, D)]"
  weight q_made: [(GK@kv, GG@q, GE), D] = "q_proj.weight[(GK, GG, GE), (1 of 2, D)]"
  weight k_x:    [(GK@kv, GE), D]       = "k_proj.weight[(GK, GE), (0 of 2, D)]"
  weight k_made: [(GK@kv, GE), D]       = "k_proj.weight[(GK, GE), (1 of 2, D)]"
  weight v_x:    [(GK@kv, GE), D]       = "v_proj.weight[(GK, GE), (0 of 2, D)]"
  weight v_made: [(GK@kv, GE), D]       = "v_proj.weight[(GK, GE), (1 of 2, D)]"
  weight wo:     [D, (GK@kv, GG@q, GE)] = "o_proj.weight"
  cache  kv:     paged [2, GK@kv, GE]
  let q = rope(linear(x, q_x) + linear(made, q_made), positions, theta = turns, scaling = scaled)
  let k = rope(linear(x, k_x) + linear(made, k_made), positions, theta = turns, scaling = scaled)
  let v = linear(x, v_x) + linear(made, v_made)
  return linear(attention(q, kv.append(k, v), scale = GE ** -0.5), wo)
}

module GuessMLP(x: [T, D]) -> [T, D | sum tp] {
  weight gate: [GF@tp, D] = "gate_proj.weight"
  weight up:   [GF@tp, D] = "up_proj.weight"
  weight down: [D, GF@tp] = "down_proj.weight"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

module Guess(x: [T, D], made: [T, D], positions: i32[T]) -> [T, D] {
  weight nx: [D] = "input_layernorm.weight"
  weight nm: [D] = "hidden_norm.weight"
  weight n2: [D] = "post_attention_layernorm.weight"
  let h = made + GuessAttention<"self_attn">(rms_norm(x, nx, geps), rms_norm(made, nm, geps), positions)
  return h + GuessMLP<"mlp">(rms_norm(h, n2, geps))
}

// An EAGLE-3 head: the token after the next, of what the model makes of one token and the next; then of what it makes itself.
entry draft(ids: i32[T], positions: i32[T], last: i32[S], made: [T, D]) -> [S, GV@tp] {
  weight embed: [V@tp, D]  = "model.embed_tokens.weight"
  weight norm:  [D]        = "eagle3.norm.weight"
  weight head:  [GV@tp, D] = "eagle3.lm_head.weight"
  keep made: [T, D] = Guess<"eagle3.midlayer">(embedding(ids, embed), made, positions)
  return linear(rms_norm(made[last], norm, geps), head)
}
