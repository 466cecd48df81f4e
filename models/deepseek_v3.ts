// DeepSeek-V3, R1 and Kimi-K2: latent attention (MLA), mixtures of experts beside a shared one.
model DeepseekV3ForCausalLM, KimiK2ForCausalLM

config {
  D       = hidden_size
  D2      = 2 * D
  L       = num_hidden_layers
  V       = vocab_size
  F       = intermediate_size  // of the first, dense layers
  H       = num_attention_heads
  A       = qk_nope_head_dim   // a query head's part without rope
  R       = qk_rope_head_dim   // its rotated part
  P       = A + R
  E       = v_head_dim
  U       = A + E
  Q       = q_lora_rank ?? 0
  C       = kv_lora_rank
  W       = C + R              // a token's row in the cache, for all heads
  N       = n_routed_experts
  I       = moe_intermediate_size
  J       = I * n_shared_experts
  top     = num_experts_per_tok
  normed  = norm_topk_prob ?? true
  gain    = routed_scaling_factor ?? 1.0
  groups  = n_group ?? 1
  best    = topk_group ?? 1    // groups that a token's experts are in
  dense   = first_k_dense_replace ?? 0
  eps     = rms_norm_eps
  theta   = rope_theta ?? rope_parameters.rope_theta ?? 10000.0
  scaling = rope_scaling ?? rope_parameters ?? none
  pairs   = rope_interleave ?? true
  all     = rope_scaling.mscale_all_dim ?? rope_parameters.mscale_all_dim ?? 0
  longer  = rope_scaling.factor ?? rope_parameters.factor ?? 1
  sharper = if all > 0 && longer > 1 then 0.1 * all * log(longer) + 1.0 else 1.0

  require (hidden_act ?? "silu") == "silu" && !(attention_bias ?? false) && (scoring_func ?? "sigmoid") == "sigmoid"
  unused  "model.layers.{L}.*"  // the layer that predicts a further token
}

mesh {
  dp            // sequences: each of its ranks has some of them, with their rows of the cache
  tp            // heads
  ep = dp * tp  // experts and vocabulary: all ranks
}

module Attention(x: [T@dp, D], positions: i32[T]) -> [T@dp, D | sum tp] {
  weight kv_down: [W, D]         = "kv_a_proj_with_mqa.weight"
  weight kv_norm: [C]            = "kv_a_layernorm.weight"
  weight kv_up:   [(H@tp, U), C] = "kv_b_proj.weight"
  weight wo:      [D, (H@tp, E)] = "o_proj.weight"
  cache  latents: paged@dp [W]  // no head factor: whole on every rank of tp

  if Q > 0 {
    weight q_down: [Q, D]         = "q_a_proj.weight"
    weight q_norm: [Q]            = "q_a_layernorm.weight"
    weight q_up:   [(H@tp, P), Q] = "q_b_proj.weight"
    let q = linear(rms_norm(linear(x, q_down), q_norm, 1e-6), q_up)  // [T, H@tp, P]
  } else {
    weight wq: [(H@tp, P), D] = "q_proj.weight"
    let q = linear(x, wq)
  }
  let content, turning = split(q, P, A, R)
  let row, key = split(linear(x, kv_down), W, C, R)
  let turned = rope(turning, positions, theta = theta, scaling = scaling, interleaved = pairs)
  let turned_key = rope(key, positions, theta = theta, scaling = scaling, interleaved = pairs)
  let rows = latents.append(rms_norm(row, kv_norm, 1e-6), turned_key)

  let k_up, v_up = split(kv_up, U, A, E)
  let absorbed = einsum("t h a, h a c -> t h c", content, k_up)  // queries in the latent space
  let mixed = latent_attention(absorbed, turned, rows, scale = P ** -0.5 * sharper ** 2)
  return linear(einsum("t h c, h e c -> t h e", mixed, v_up), wo)
}

module MLP(x: [T@dp, D]) -> [T@dp, D | sum tp] {
  weight gate: [F@tp, D] = "gate_proj.weight"
  weight up:   [F@tp, D] = "up_proj.weight"
  weight down: [D, F@tp] = "down_proj.weight"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

module Shared(x: [T, D]) -> [T, D | sum ep] {
  weight gate: [J@ep, D] = "gate_proj.weight"
  weight up:   [J@ep, D] = "up_proj.weight"
  weight down: [D, J@ep] = "down_proj.weight"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

module Mixture(x: [T, D]) -> [T, D | sum ep] {
  weight router: [N, D]       = "gate.weight"
  weight bias:   f32[N]       = "gate.e_score_correction_bias"
  weight gate:   [N@ep, I, D] = "experts.{N}.gate_proj.weight"
  weight up:     [N@ep, I, D] = "experts.{N}.up_proj.weight"
  weight down:   [N@ep, D, I] = "experts.{N}.down_proj.weight"
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

module Layer(x: [T@dp, D], positions: i32[T], sparse) -> [T@dp, D] {
  weight n1: [D] = "input_layernorm.weight"
  weight n2: [D] = "post_attention_layernorm.weight"
  let h = x + Attention<"self_attn">(rms_norm(x, n1, eps), positions)
  let y = rms_norm(h, n2, eps)
  if sparse { let made = Mixture<"mlp">(y) } else { let made = MLP<"mlp">(y) }
  return h + made
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@ep] {
  weight embed: [V@ep, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@ep, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? false
  let x = embedding(ids, embed)
  for i in 0..L carry x { x = Layer<"model.layers.{i}">(x, positions, i >= dense) }
  keep made: [T@dp, D] = rms_norm(x, norm, eps)  // for `draft`
  return linear(made[last], head)
}

// The token after the next, of what was made of one token and the next: the first layer of multi-token prediction. What it makes is kept
// in turn, to guess one further.
entry draft(ids: i32[T], positions: i32[T], last: i32[S], made: [T@dp, D]) -> [S, V@ep] {
  weight embed:  [V@ep, D] = "model.embed_tokens.weight"
  weight head:   [V@ep, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? false
  weight enorm:  [D]       = "model.layers.{L}.enorm.weight"
  weight hnorm:  [D]       = "model.layers.{L}.hnorm.weight"
  weight joined: [D, D2]   = "model.layers.{L}.eh_proj.weight"
  weight norm:   [D]       = "model.layers.{L}.shared_head.norm.weight"
  let of_next, of_made = split(joined, D2, D, D)
  let x = linear(rms_norm(embedding(ids, embed), enorm, eps), of_next) + linear(rms_norm(made, hnorm, eps), of_made)
  keep made: [T@dp, D] = rms_norm(Layer<"model.layers.{L}">(x, positions, true), norm, eps)
  return linear(made[last], head)
}
