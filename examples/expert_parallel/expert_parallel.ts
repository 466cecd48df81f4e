// A decoder of mixtures with tokens shared out between blocks: every rank has some tokens and some experts.
model ExpertParallelForCausalLM

config {
  D      = hidden_size
  L      = num_hidden_layers
  V      = vocab_size
  N      = n_routed_experts
  I      = moe_intermediate_size
  J      = I * n_shared_experts
  top    = num_experts_per_tok
  groups = n_group ?? 1
  best   = topk_group ?? 1
  gain   = routed_scaling_factor ?? 1.0
  eps    = rms_norm_eps
}

mesh { tp }

module Mixture(x: [T, D]) -> [T, D | sum tp] {
  weight router: [N, D]       = "gate.weight"
  weight bias:   f32[N]       = "gate.e_score_correction_bias"
  weight gate:   [N@tp, I, D] = "experts.{N}.gate_proj.weight"
  weight up:     [N@tp, I, D] = "experts.{N}.up_proj.weight"
  weight down:   [N@tp, D, I] = "experts.{N}.down_proj.weight"
  weight sgate:  [J@tp, D]    = "shared_experts.gate_proj.weight"
  weight sup:    [J@tp, D]    = "shared_experts.up_proj.weight"
  weight sdown:  [D, J@tp]    = "shared_experts.down_proj.weight"
  let chosen = route(
    linear(x, router),
    bias,
    top_k = top,
    score = "sigmoid",
    scale = gain,
    groups = groups,
    top_groups = best,
    group_best = 2,
  )
  let shared = linear(silu(linear(x, sgate)) * linear(x, sup), sdown)
  return experts(x, chosen, gate, up, down) + shared  // two pending sums are one
}

module Block(x: [T@tp, D]) -> [T@tp, D] {
  weight norm: [D] = "post_attention_layernorm.weight"
  return x + Mixture<"mlp">(rms_norm(x, norm, eps))  // the normed rows are gathered, the sum is scattered
}

entry decode(ids: i32[T], last: i32[S]) -> [S, V@tp] {
  weight embed: [V@tp, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@tp, D] = "lm_head.weight"
  let x = embedding(ids, embed)
  for i in 0..L carry x { x = Block<"model.layers.{i}">(x) }
  return linear(rms_norm(x[last], norm, eps), head)
}
