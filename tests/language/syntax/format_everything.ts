// A header comment,
// over two lines.

model   Qwen3ForCausalLM,LlamaForCausalLM   // two names
config { D=hidden_size
  eps = rms_norm_eps ?? 1e-6 // kept as written


  theta=rope_parameters.full_attention.rope_theta??10000.0
  // own line
  sliding = layer_types[0]=="full_attention"&&!use_sliding_window
  kind = if sliding_window != none then (sliding_window) else -1 }
mesh { tp=kv*q where kv=gcd(K,tp) }
// about Attention
module Attention(x:[T,D],positions:int[T],window,theta)->[T,D|sum tp]strict{
weight wq:[(K@kv,G@q,E),D]="q_proj.weight"
cache kv:paged[2,K@kv,E,] window window  // trailing
  weight long_name : bf16[(D)] = "o_proj.weight" tied wq when tie_word_embeddings
  let q,k = rope(x, // inside a statement
    positions)
  if window != none && layer > 3 { let q = f(q) } else if a { x = b
  } else {
     // why
     x = c
  }
  if attention_bias { weight bq: [K@kv] = "q_proj.bias" }
  for i in 0..L-1 carry x,h { x = Layer<"model.layers.{i}">(x,h) }
  for i in 0..L carry x {
    x = Layer<"layers.{i}">(x)   // one
    h = x                        // two
    // the end of the loop
  }
  return attention(split(q, heads = K), cache.append(k, v), scale = (E ** -0.5) * (if window then window else 1), sinks = sinks), k
}
module Long(hidden: [T, D], positions: i32[T], attention_mask: [T, T], cosines: [T, E], sines: [T, E], window, theta, scaling) -> [T, D] {
  let total = a_rather_long_name_of_something + another_rather_long_name_of_something * yet_another_long_name_of_something - final_name_of_all
  return Layer<"a_rather_long_prefix">(hidden, positions, attention_mask, cosines, sines, window = f(window, theta, scaling), theta = theta)
}
module Empty() -> [] {}
entry decode(ids: i32[T]) -> [S, V@tp | sum ep, q | max dp] { return x }   // after
// the end
