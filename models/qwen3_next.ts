// Qwen3-Next: gated delta nets with gated attention in each fourth layer; mixtures of experts beside a gated shared one.
model Qwen3NextForCausalLM

config {                                // read from the checkpoint's config.json; defaults after `??`
  D       = hidden_size
  L       = num_hidden_layers
  V       = vocab_size
  N       = num_experts
  I       = moe_intermediate_size
  J       = shared_expert_intermediate_size
  top     = num_experts_per_tok
  normed  = norm_topk_prob ?? true
  K       = num_key_value_heads
  G       = num_attention_heads / K     // query heads per key/value head
  E       = head_dim ?? 256
  P       = 2 * E                       // a query and its gate
  H       = linear_num_key_heads
  M       = linear_num_value_heads / H  // value heads per key head
  A       = linear_key_head_dim
  B       = linear_value_head_dim
  C       = M * B                       // the values of a key head
  U       = 2 * A + 2 * C               // its query, its key, its values and their gates
  R       = 2 * M
  W       = linear_conv_kernel_dim
  Z       = W - 1                       // tokens that the convolutions look back
  kinds   = layer_types ?? none
  every   = full_attention_interval ?? 4
  eps     = rms_norm_eps
  theta   = rope_theta ?? rope_parameters.rope_theta ?? 10000.0
  scaling = rope_scaling ?? rope_parameters ?? none
  turned  = partial_rotary_factor ?? rope_parameters.partial_rotary_factor ?? 0.25

  require (hidden_act ?? "silu") == "silu" && !(attention_bias ?? false)
  require (decoder_sparse_step ?? 1) == 1 && len(mlp_only_layers ?? "") == 0  // every layer is a mixture
  unused  "mtp.*"                                                             // the layer that predicts a further token
}

mesh {                               // axis sizes come from the command line: --mesh tp=8
  tp = kv * q where kv = gcd(K, tp)  // more ranks than K/V heads: K and V repeat over q, by type
}

module Attention(x: [T, D], positions: i32[T]) -> [T, D | sum tp] {
  weight wq: [(K@kv, G@q, P), D] = "q_proj.weight"
  weight wk: [(K@kv, E), D]      = "k_proj.weight"
  weight wv: [(K@kv, E), D]      = "v_proj.weight"
  weight wo: [D, (K@kv, G@q, E)] = "o_proj.weight"
  weight qn: [E]                 = "q_norm.weight"
  weight kn: [E]                 = "k_norm.weight"
  cache  kv: paged [2, K@kv, E]

  let content, gate = split(linear(x, wq), P, E, E)
  let q = rope(rms_norm(content, qn, eps, offset = 1.0), positions, theta = theta, scaling = scaling, fraction = turned)
  let k = rope(
    rms_norm(linear(x, wk), kn, eps, offset = 1.0),
    positions,
    theta = theta,
    scaling = scaling,
    fraction = turned,
  )
  let seen = attention(q, kv.append(k, linear(x, wv)), scale = E ** -0.5)
  return linear(seen * sigmoid(gate), wo)
}

module DeltaNet(x: [T, D]) -> [T, D | sum tp] {
  weight wx:     [(H@tp, U), D]    = "in_proj_qkvz.weight"
  weight wg:     [(H@tp, R), D]    = "in_proj_ba.weight"
  weight cq:     [(H@tp, A), 1, W] = "conv1d.weight" from 0
  weight ck:     [(H@tp, A), 1, W] = "conv1d.weight" from H * A
  weight cv:     [(H@tp, C), 1, W] = "conv1d.weight" from 2 * H * A
  weight rate:   f32[(H@tp, M)]    = "A_log"
  weight bias:   f32[(H@tp, M)]    = "dt_bias"
  weight norm:   [B]               = "norm.weight"
  weight wo:     [D, (H@tp, M, B)] = "out_proj.weight"
  cache  qs:     state f32[Z, H@tp, A]
  cache  ks:     state f32[Z, H@tp, A]
  cache  vs:     state f32[Z, H@tp, C]
  cache  memory: state f32[H@tp, M, A, B]

  let raw_q, raw_k, raw_v, gate = split(linear(x, wx), U, A, A, C, C)
  let gain, loss = split(linear(x, wg), R, M, M)
  let q = silu(short_conv(raw_q, cq, qs))
  let k = silu(short_conv(raw_k, ck, ks))
  let v = unflatten(silu(short_conv(raw_v, cv, vs)), C, M, B)
  let read = gated_delta(q, k, v, decay(loss, rate, bias), sigmoid(gain), memory, scale = A ** -0.5)
  return linear(rms_norm(read, norm, eps) * unflatten(silu(gate), C, M, B), wo)
}

module Shared(x: [T, D]) -> [T, D | sum tp] {
  weight gate: [J@tp, D] = "gate_proj.weight"
  weight up:   [J@tp, D] = "up_proj.weight"
  weight down: [D, J@tp] = "down_proj.weight"
  return linear(silu(linear(x, gate)) * linear(x, up), down)
}

module Mixture(x: [T, D]) -> [T, D | sum tp] {
  weight router: [N, D]       = "gate.weight"
  weight opened: [1, D]       = "shared_expert_gate.weight"
  weight gate:   [N@tp, I, D] = "experts.{N}.gate_proj.weight"
  weight up:     [N@tp, I, D] = "experts.{N}.up_proj.weight"
  weight down:   [N@tp, D, I] = "experts.{N}.down_proj.weight"
  let chosen = route(linear(x, router), top_k = top, normalize = normed)
  let shared = scale_rows(Shared<"shared_expert">(x), sigmoid(linear(x, opened)))
  return experts(x, chosen, gate, up, down) + shared  // two pending sums are one
}

module Layer(x: [T, D], positions: i32[T], attends) -> [T, D] {
  weight n1: [D] = "input_layernorm.weight"
  weight n2: [D] = "post_attention_layernorm.weight"
  let y = rms_norm(x, n1, eps, offset = 1.0)
  if attends { let mixed = Attention<"self_attn">(y, positions) } else { let mixed = DeltaNet<"linear_attn">(y) }
  let h = x + mixed
  return h + Mixture<"mlp">(rms_norm(h, n2, eps, offset = 1.0))
}

entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V@tp] {
  weight embed: [V@tp, D] = "model.embed_tokens.weight"
  weight norm:  [D]       = "model.norm.weight"
  weight head:  [V@tp, D] = "lm_head.weight" tied embed when tie_word_embeddings ?? false
  let x = embedding(ids, embed)
  for i in 0..L carry x {
    let attends = if kinds == none then (i + 1) % every == 0 else kinds[i] == "full_attention"
    x = Layer<"model.layers.{i}">(x, positions, attends)
  }
  return linear(rms_norm(x[last], norm, eps, offset = 1.0), head)
}
