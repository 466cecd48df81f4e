// The kernels of one instruction set. A file for each set includes this after saying which set it is: TSK_ISA the
// namespace, TSK_LANES f32 in a vector, TSK_DOT_BF16 where products of bf16 pairs are an instruction. Such a file is
// compiled for its set (CMakeLists.txt). So nothing here may be an inline function that other files share, unless it is
// always inlined: the linker would keep one copy for all, and processors without the set would stumble over it.

namespace tsk::TSK_ISA {

#if TSK_LANES == 16
#include "vector_avx512.hpp"
#else
#include "vector_avx2.hpp"
#endif
// clang-format off: in the order in which they build on each other
#include "functions.hpp"
#include "transpose.hpp"
#include "panels.hpp"
#include "linear.hpp"
#include "bytes.hpp"
#include "screen.hpp"
#include "rowwise.hpp"
#include "quantized_vector.hpp"
#include "int8_cache.hpp"
#include "fp8_cache.hpp"
#include "byte_panels.hpp"
#include "attention_pack.hpp"
#include "attention_spans.hpp"
#include "attention.hpp"
#include "latent_attention.hpp"
#include "recurrent.hpp"
#include "einsum.hpp"
#include "mixture.hpp"
#include "mixture_panels.hpp"
#include "mixture_experts.hpp"
#include "quantized_formats.hpp"
#include "quantized_rows.hpp"
#include "quantized.hpp"
#include "reduce.hpp"
#include "keys.hpp"
// clang-format on

constexpr Kernel kernels[] = {
    {"linear_panels", Partition::whole, linear_panels, linear_scratch},
    {"linear_rows", Partition::whole, linear_rows, linear_rows_scratch},
    {"gated_panels", Partition::whole, gated_panels, linear_scratch},
    {"attention", Partition::whole, attention<false>, attention_scratch<false>},
    {"attention_int8", Partition::whole, attention_int8<false>, attention_int8_scratch<false>},
    {"sink_attention", Partition::whole, attention<true>, attention_scratch<true>},
    {"sink_attention_int8", Partition::whole, attention_int8<true>, attention_int8_scratch<true>},
    {"latent_attention", Partition::whole, latent_attention, latent_attention_scratch},
    {"screened_rows", Partition::whole, screened_rows, screened_rows_scratch},
    {"max_index", Partition::whole, max_index_rows},
    {"rms_norm", Partition::rows, rms_norm_rows},
    {"row_squares", Partition::rows, row_squares_rows},
    {"rms_scale", Partition::rows, rms_scale_rows},
    {"rope", Partition::rows, rope_rows, nullptr, prepare_rope, 1},
    {"silu", Partition::rows, silu_rows},
    {"sigmoid", Partition::rows, sigmoid_rows},
    {"gelu", Partition::rows, gelu_rows},
    {"gelu_tanh", Partition::rows, gelu_tanh_rows},
    {"scale", Partition::rows, scale_rows},
    {"scale_rows", Partition::rows, scale_rows_of},
    {"softcap", Partition::rows, softcap_rows},
    {"add", Partition::rows, add_rows_of},
    {"mul", Partition::rows, mul_rows},
    {"embedding", Partition::rows, embedding},
    {"copy", Partition::rows, copy_rows},
    {"take_rows", Partition::whole, take_rows},
    {"cache_append", Partition::rows, cache_append},
    {"cache_append_int8", Partition::rows, cache_append_int8},
    {"latent_append", Partition::rows, latent_append},
    {"short_conv", Partition::whole, short_conv},
    {"decay", Partition::rows, decay_rows},
    {"gated_delta", Partition::whole, gated_delta, gated_delta_scratch},
    {"einsum", Partition::whole, einsum, einsum_scratch},
    {"route", Partition::whole, route, route_scratch},
    {"experts_panels", Partition::whole, experts<WholePanels>, experts_scratch<WholePanels>},
    {"experts_mxfp4", Partition::whole, experts<Mxfp4Panels>, experts_scratch<Mxfp4Panels>},
    {"linear_int8", Partition::whole, linear_quantized<Int8>, quantized_scratch<Int8>},
    {"gated_int8", Partition::whole, gated_quantized<Int8>, quantized_scratch<Int8>},
    {"embedding_int8", Partition::rows, embedding_quantized<Int8>},
    {"linear_int4", Partition::whole, linear_quantized<Int4>, quantized_scratch<Int4>},
    {"gated_int4", Partition::whole, gated_quantized<Int4>, quantized_scratch<Int4>},
    {"embedding_int4", Partition::rows, embedding_quantized<Int4>},
    {"linear_q8_0", Partition::whole, linear_quantized<Q8_0>, quantized_scratch<Q8_0>},
    {"gated_q8_0", Partition::whole, gated_quantized<Q8_0>, quantized_scratch<Q8_0>},
    {"embedding_q8_0", Partition::rows, embedding_quantized<Q8_0>},
    {"linear_q4_0", Partition::whole, linear_quantized<Q4_0>, quantized_scratch<Q4_0>},
    {"gated_q4_0", Partition::whole, gated_quantized<Q4_0>, quantized_scratch<Q4_0>},
    {"embedding_q4_0", Partition::rows, embedding_quantized<Q4_0>},
    {"linear_q4_1", Partition::whole, linear_quantized<Q4_1>, quantized_scratch<Q4_1>},
    {"gated_q4_1", Partition::whole, gated_quantized<Q4_1>, quantized_scratch<Q4_1>},
    {"embedding_q4_1", Partition::rows, embedding_quantized<Q4_1>},
    {"linear_q5_0", Partition::whole, linear_quantized<Q5_0>, quantized_scratch<Q5_0>},
    {"gated_q5_0", Partition::whole, gated_quantized<Q5_0>, quantized_scratch<Q5_0>},
    {"embedding_q5_0", Partition::rows, embedding_quantized<Q5_0>},
    {"linear_q4_k", Partition::whole, linear_quantized<Q4_K>, quantized_scratch<Q4_K>},
    {"gated_q4_k", Partition::whole, gated_quantized<Q4_K>, quantized_scratch<Q4_K>},
    {"embedding_q4_k", Partition::rows, embedding_quantized<Q4_K>},
    {"linear_q5_k", Partition::whole, linear_quantized<Q5_K>, quantized_scratch<Q5_K>},
    {"gated_q5_k", Partition::whole, gated_quantized<Q5_K>, quantized_scratch<Q5_K>},
    {"embedding_q5_k", Partition::rows, embedding_quantized<Q5_K>},
    {"linear_q6_k", Partition::whole, linear_quantized<Q6_K>, quantized_scratch<Q6_K>},
    {"gated_q6_k", Partition::whole, gated_quantized<Q6_K>, quantized_scratch<Q6_K>},
    {"embedding_q6_k", Partition::rows, embedding_quantized<Q6_K>},
    {"linear_q5_1", Partition::whole, linear_quantized<Q5_1>, quantized_scratch<Q5_1>},
    {"gated_q5_1", Partition::whole, gated_quantized<Q5_1>, quantized_scratch<Q5_1>},
    {"embedding_q5_1", Partition::rows, embedding_quantized<Q5_1>},
    {"linear_q3_k", Partition::whole, linear_quantized<Q3_K>, quantized_scratch<Q3_K>},
    {"gated_q3_k", Partition::whole, gated_quantized<Q3_K>, quantized_scratch<Q3_K>},
    {"embedding_q3_k", Partition::rows, embedding_quantized<Q3_K>},
    {"linear_iq4_nl", Partition::whole, linear_quantized<IQ4_NL>, quantized_scratch<IQ4_NL>},
    {"gated_iq4_nl", Partition::whole, gated_quantized<IQ4_NL>, quantized_scratch<IQ4_NL>},
    {"embedding_iq4_nl", Partition::rows, embedding_quantized<IQ4_NL>},
    {"linear_iq4_xs", Partition::whole, linear_quantized<IQ4_XS>, quantized_scratch<IQ4_XS>},
    {"gated_iq4_xs", Partition::whole, gated_quantized<IQ4_XS>, quantized_scratch<IQ4_XS>},
    {"embedding_iq4_xs", Partition::rows, embedding_quantized<IQ4_XS>},
    {"linear_affine4_32", Partition::whole, linear_quantized<Affine4_32>, quantized_scratch<Affine4_32>},
    {"gated_affine4_32", Partition::whole, gated_quantized<Affine4_32>, quantized_scratch<Affine4_32>},
    {"embedding_affine4_32", Partition::rows, embedding_quantized<Affine4_32>},
    {"linear_affine4_128", Partition::whole, linear_quantized<Affine4_128>, quantized_scratch<Affine4_128>},
    {"gated_affine4_128", Partition::whole, gated_quantized<Affine4_128>, quantized_scratch<Affine4_128>},
    {"embedding_affine4_128", Partition::rows, embedding_quantized<Affine4_128>},
    {"linear_affine8_32", Partition::whole, linear_quantized<Affine8_32>, quantized_scratch<Affine8_32>},
    {"gated_affine8_32", Partition::whole, gated_quantized<Affine8_32>, quantized_scratch<Affine8_32>},
    {"embedding_affine8_32", Partition::rows, embedding_quantized<Affine8_32>},
    {"all_reduce", Partition::whole, all_reduce},
    {"reduce_scatter", Partition::whole, reduce_scatter},
    {"all_gather", Partition::whole, all_gather},
    {"all_to_all", Partition::whole, all_to_all},
    {"local_slice", Partition::whole, local_slice},
    {"keep_first", Partition::whole, keep_first},
    {"max_key", Partition::rows, max_key_rows},
    {"top_keys", Partition::rows, top_keys_rows},
    {"merge_keys", Partition::rows, merge_keys_rows},
    {"key_index", Partition::rows, key_index_rows},
    {"key_value", Partition::rows, key_value_rows},
    {"row_max", Partition::rows, row_max_rows},
    {"row_sum", Partition::rows, row_sum_rows},
    {"exp_minus", Partition::rows, exp_minus_rows},
    {"divide_rows", Partition::rows, divide_rows_of},
};

}  // namespace tsk::TSK_ISA
