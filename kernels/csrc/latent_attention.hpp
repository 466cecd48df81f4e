// Latent attention: one K/V head whose keys are whole rows of the cache and whose values are their beginnings. Included
// inside an instruction set's namespace.

// (q [T, H, C], rotated [T, H, R], cache [pages, page_size, C + R], spans, lengths, tables; shard, scale, window)
inline Problem latent_problem(const Call& call) {
  const Tensor &q = call.operands[0], &rotated = call.operands[1], &cache = call.operands[2], &out = call.out;
  Problem problem;
  problem.q = {q.data, q.strides[0], 0, q.strides[1], q.width()};
  problem.rotated = {rotated.data, rotated.strides[0], 0, rotated.strides[1], rotated.width()};
  problem.out = {out.data, out.strides[0], 0, out.strides[1], out.width()};
  problem.tokens = q.sizes[0], problem.key_heads = 1, problem.group = q.sizes[1];
  problem.key_width = q.width() + rotated.width(), problem.value_width = q.width();
  problem.cache = cache.data;
  problem.page_size = cache.sizes[1], problem.page_stride = cache.strides[0], problem.row_stride = cache.strides[1];
  problem.value_offset = 0, problem.head_stride = 0, problem.scales_offset = 0;
  problem.spans = call.operands[3], problem.lengths = call.operands[4], problem.tables = call.operands[5];
  problem.shard = static_cast<std::int64_t>(call.numbers[0]), problem.scale = static_cast<float>(call.numbers[1]);
  problem.window = static_cast<std::int64_t>(call.numbers[2]), problem.softcap = 0;
  return problem;
}

inline void latent_attention(const Call& call, const Worker& worker) {
  attend(latent_problem(call), call.operands[2], call, worker);
}
inline std::int64_t latent_attention_scratch(const Call& call, int num_workers) {
  return attend_scratch(latent_problem(call), call.operands[2], num_workers);
}
