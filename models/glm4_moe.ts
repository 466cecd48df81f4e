// GLM-4.5 and GLM-4.6: grouped-query attention that turns a part of each head, mixtures of experts beside a shared one.
model Glm4MoeForCausalLM

config {                              // read from the checkpoint's config.json; defaults after `??`
  D        = hidden_size
  L        = num_hidden_layers
  V        = vocab_size
  F        = intermediate_size        // of the first, dense layers
  K        = num_key_value_heads
  G        = num_attention_heads / K  // query heads per key/value head
  E        = head_dim ?? D / (K * G)
  N        = n_routed_experts
  I        = moe_intermediate_size
  J        = I * n_shared_experts
  top      = num_experts_per_tok
  normed   = norm_topk_prob ?? true
  gain     = routed_scaling_factor ?? 1.0
  groups   = n_group ?? 1
  best     = topk_group ?? 1          // groups that a token's experts are in
  dense    = first_k_dense_replace ?? 1
  biased   = attention_bias ?? false
  eps      = rms_norm_eps
  theta    = rope_theta ?? rope_parameters.rope_theta ?? 10000.0
  scaling  = rope_scaling ?? rope_parameters ?? none
  fraction = partial_rotary_factor ?? rope_parameters.partial_rotary_factor ?? 0.5

  require (hidden_act ?? "silu") == "silu"
  unused  "model.layers.{L}.*"  // the layer that predicts a further token
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
  cache  kv: paged [2, K@kv, E]

  let q = linear(x, wq, bq)  // [T, K@kv, G@q, E]
  let k = linear(x, wk, bk)
  let v = linear(x, wv, bv)
  if use_qk_norm ?? false {
    weight qn: [E] = "q_norm.weight"
    weight kn: [E] = "k_norm.weight"
    q = rms_norm(q, qn, eps)
    k = rms_norm(k, kn, eps)
  }
  let turned = rope(q, positions, theta = theta, scaling = scaling, fraction = fraction)
  let rows = kv.append(rope(k, positions, theta = theta, scaling = scaling, fraction = fraction), v)
  return linear(attention(turned, rows, scale = E ** -0.5), wo)
}

module MLP(x: [T, D]) -> [T, D | sum tp] {
  weight gate: [F@tp, D] = "gate_proj.weight"
  weight up:   [F@tp, D] = "up_proj.weight"
  weight down: [D, F@tp] = "down_proj.weight"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

module Shared(x: [T, D]) -> [T, D | sum tp] {
  weight gate: [J@tp, D] = "gate_proj.weight"
  weight up:   [J@tp, D] = "up_proj.weight"
  weight down: [D, J@tp] = "down_proj.weight"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

module Mixture(x: [T, D]) -> [T, D | sum tp] {
  weight router: [N, D]       = "gate.weight"
  weight bias:   f32[N]       = "gate.e_score_correction_bias"
  weight gate:   [N@tp, I, D] = "experts.{N}.gate_proj.weight"
  weight up:     [N@tp, I, D] = "experts.{N}.up_proj.weight"
  weight down:   [N@tp, D, I] = "experts.{N}.down_proj.weight"
  let chosen = route(
    linear(x, router),
    bias,
    top_k = top,
    score = "sigmoid",
    normalize = normed,
    scale = gain,
    groups = groups,
    top_groups = best,
    group_best = 2,
  )
  return experts(x, chosen, gate, up, down) + Shared<"shared_experts">(x)  // two pending sums are one
}

module Layer(x: [T, D], positions: i32[T], sparse) -> [T, D] {
  weight n1: [D] = "input_layernorm.weight"
  weight n2: [D] = "post_attention_layernorm.weight"
  let h = x + Attention<"self_attn">(rms_norm(x, n1, eps), positions)
  let y = rms_norm(h, n2, eps)
  if sparse { let made = Mixture<"mlp">(y) } else { let made = MLP<"mlp">(y) }
  return h + made
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@tp] {
  weight embed: [V@tp, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@tp, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? false
  let x = embedding(ids, embed)                      // each rank has some rows: masked, then a sum
  for i in 0..L carry x { x = Layer<"model.layers.{i}">(x, positions, i >= dense) }
  return linear(rms_norm(x[last], norm, eps), head)  // the last rows are taken before the matmul
}
