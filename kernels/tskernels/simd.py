"""The C++ kernels for CPUs (kernels/csrc): which op each runs, and how a call is put to it. Imports no torch.

They run in programs of `tskernels._cpu`, which an artifact whose kernels are all of these needs nothing else for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tskernels.cache_layouts import FP8_CACHE, INT8_CACHE
from tskernels.cost import Cost, dot_bound, experts_panels_bound, panels_bound
from tskernels.equation import is_batched_matmul, matmul_dimensions
from tskernels.expansion import all_absorbed
from tskernels.layouts import GATED_PANELS, PANELS, QUANTIZED, SCREEN, STACKED
from tskernels.registry import Call, When, one_float_type
from tskernels.rope_kinds import magnitude_of
from tskernels.target import cpu

SIMD: Final = "simd"
SIMD_PANELS: Final = "simd_panels"
SIMD_INT8: Final = "simd_int8"
SIMD_FP8: Final = "simd_fp8"
TARGET: Final = cpu("avx2", "fma", "f16c")
MOST_TAPS: Final = 8
"""`max_taps` of recurrent.hpp."""
ACTIVATIONS: Final = ("silu", "gelu", "gelu_tanh")
"""In the order of `Activation` in linear.hpp."""
REDUCTIONS: Final = ("sum", "max")
"""In the order of `Reduction` in collectives.hpp."""

Numbers = Callable[[Mapping[str, Any]], Sequence[float]]
"""What a kernel takes as numbers, of the attributes and coordinates by name."""


def _named(*names: str) -> Numbers:
    return lambda given: [float(given[name]) for name in names]


def _rope_numbers(given: Mapping[str, Any]) -> Sequence[float]:
    return [float(given["interleaved"]), magnitude_of(given["kind"], given.get("parameters", ()))]


def _einsum_numbers(given: Mapping[str, Any]) -> Sequence[float]:
    return matmul_dimensions(given["equation"])


def _route_numbers(given: Mapping[str, Any]) -> Sequence[float]:
    flags = float(given["score"] == "sigmoid"), float(given["normalize"])
    return [float(given["top_k"]), *flags, *(float(given[name]) for name in ("scale", "groups", "top_groups", "group_best"))]


_experts_numbers = _named("alpha", "limit", "offset")


def _gated_numbers(given: Mapping[str, Any]) -> Sequence[float]:
    return [float(ACTIVATIONS.index(given["activation"]))]


def _reduction_number(given: Mapping[str, Any]) -> Sequence[float]:
    return [float(REDUCTIONS.index(given["reduction"]))]


def weight_as_rows(call: Call) -> bool:
    """a weight of the rows' element type."""
    return call.operands[0].dtype == call.operands[2].dtype


def _has_few_taps(call: Call) -> bool:
    """rows and taps of one type, and at most 8 taps."""
    x, w = call.operands[:2]
    return x.dtype == w.dtype and (w.shape[-1] or 0) <= MOST_TAPS


def _has_values_of_one_type(call: Call) -> bool:
    """queries, keys, values and betas of one type."""
    q, k, v, _, beta = call.operands[:5]
    return len({q.dtype, k.dtype, v.dtype, beta.dtype}) == 1


@dataclass(frozen=True, slots=True)
class SimdKernel:
    """A kernel of an op by the registry's name. symbol: its name in C++; layouts: of operands that are not stored by rows; coordinates:
    names of the arguments that are numbers of the rank; cost: None for that of the op's reference; collective: it is given the group of
    ranks of its `axis`; when: what else it needs; takes_constants: of those that `simd_kernels.py` computes when a program is compiled."""

    op: str
    name: str
    symbol: str
    numbers: Numbers = lambda given: ()
    layouts: Mapping[int, str] = field(default_factory=dict)
    coordinates: tuple[str, ...] = ("shard",)
    cost: Cost | None = None
    collective: bool = False
    when: When | None = one_float_type
    takes_constants: bool = False


def _quantized(name: str) -> tuple[SimdKernel, ...]:
    return (
        SimdKernel("ts::linear", f"simd_{name}", f"linear_{name}", layouts={1: name}),
        SimdKernel("ts::gated_linear", f"simd_{name}", f"gated_{name}", _gated_numbers, {1: f"gated_{name}"}),
        SimdKernel("ts::embedding", f"simd_{name}", f"embedding_{name}", _named("shard"), {1: name}, takes_constants=True),
    )


def _collective(symbol: str, numbers: Numbers = lambda given: ()) -> SimdKernel:
    return SimdKernel(f"ts::{symbol}", SIMD, symbol, numbers, coordinates=(), collective=True, when=None)


_KERNELS: Final = (
    SimdKernel("ts::linear", SIMD, "linear_rows", cost=dot_bound),
    SimdKernel("ts::linear", SIMD_PANELS, "linear_panels", layouts={1: PANELS}, cost=panels_bound),
    SimdKernel("ts::gated_linear", SIMD_PANELS, "gated_panels", _gated_numbers, {1: GATED_PANELS}, cost=panels_bound),
    SimdKernel("ts::screened_linear", SIMD, "screened_rows", layouts={2: SCREEN}),
    SimdKernel("ts::rms_norm", SIMD, "rms_norm", _named("eps", "offset")),
    SimdKernel("ts::row_squares", SIMD, "row_squares"),
    SimdKernel("ts::rms_scale", SIMD, "rms_scale", _named("eps", "offset", "count"), when=weight_as_rows),
    SimdKernel("ts::rope", SIMD, "rope", _rope_numbers, takes_constants=True),
    SimdKernel("ts::silu", SIMD, "silu"),
    SimdKernel("ts::sigmoid", SIMD, "sigmoid"),
    SimdKernel("ts::gelu", SIMD, "gelu"),
    SimdKernel("ts::gelu_tanh", SIMD, "gelu_tanh"),
    SimdKernel("ts::scale", SIMD, "scale", _named("factor")),
    SimdKernel("ts::scale_rows", SIMD, "scale_rows"),
    SimdKernel("ts::softcap", SIMD, "softcap", _named("cap")),
    SimdKernel("ts::add", SIMD, "add"),
    SimdKernel("ts::mul", SIMD, "mul"),
    SimdKernel("ts::embedding", SIMD, "embedding", _named("shard")),
    SimdKernel("ts::take_rows", SIMD, "take_rows"),
    SimdKernel("ts::attention", SIMD, "attention", _named("shard", "scale", "window", "softcap")),
    SimdKernel("ts::attention", SIMD_INT8, "attention_int8", _named("shard", "scale", "window", "softcap"), {1: INT8_CACHE}),
    SimdKernel("ts::sink_attention", SIMD, "sink_attention", _named("shard", "scale", "window", "softcap")),
    SimdKernel("ts::sink_attention", SIMD_INT8, "sink_attention_int8", _named("shard", "scale", "window", "softcap"), {1: INT8_CACHE}),
    SimdKernel("ts::latent_attention", SIMD, "latent_attention", _named("shard", "scale", "window"), when=all_absorbed),
    SimdKernel("ts::cache_append", SIMD, "cache_append"),
    SimdKernel("ts::cache_append", SIMD_INT8, "cache_append_int8", layouts={0: INT8_CACHE}),
    SimdKernel("ts::latent_append", SIMD, "latent_append"),
    SimdKernel("ts::attention", SIMD_FP8, "attention", _named("shard", "scale", "window", "softcap"), {1: FP8_CACHE}),
    SimdKernel("ts::sink_attention", SIMD_FP8, "sink_attention", _named("shard", "scale", "window", "softcap"), {1: FP8_CACHE}),
    SimdKernel("ts::latent_attention", SIMD_FP8, "latent_attention", _named("shard", "scale", "window"), {2: FP8_CACHE}),
    SimdKernel("ts::cache_append", SIMD_FP8, "cache_append", layouts={0: FP8_CACHE}),
    SimdKernel("ts::latent_append", SIMD_FP8, "latent_append", layouts={0: FP8_CACHE}),
    SimdKernel("ts::short_conv", SIMD, "short_conv", _named("shard"), when=_has_few_taps),
    SimdKernel("ts::decay", SIMD, "decay", when=None),
    SimdKernel("ts::gated_delta", SIMD, "gated_delta", _named("shard", "scale", "eps"), when=_has_values_of_one_type),
    SimdKernel("ts::einsum", SIMD, "einsum", _einsum_numbers, when=is_batched_matmul),
    SimdKernel("ts::route", SIMD, "route", _route_numbers, when=None),
    SimdKernel("ts::experts", SIMD_PANELS, "experts_panels", _experts_numbers, dict.fromkeys((2, 3, 4), PANELS), cost=experts_panels_bound),
    *(SimdKernel("ts::experts", f"simd_{name}", f"experts_{name}", _experts_numbers, dict.fromkeys((2, 3, 4), name)) for name in STACKED),
    *(kernel for name in QUANTIZED for kernel in _quantized(name)),
    _collective("all_reduce", _reduction_number),
    _collective("reduce_scatter", _named("dim")),
    _collective("all_gather", _named("dim")),
    _collective("all_to_all", _named("split_dim", "concat_dim")),
    _collective("local_slice", _named("dim")),
    _collective("keep_first"),
    SimdKernel("ts::max_key", SIMD, "max_key", _named("shard")),
    SimdKernel("ts::top_keys", SIMD, "top_keys", _named("shard", "k", "width")),
    SimdKernel("ts::merge_keys", SIMD, "merge_keys", when=None),
    SimdKernel("ts::key_index", SIMD, "key_index", when=None),
    SimdKernel("ts::key_value", SIMD, "key_value", when=None),
    SimdKernel("ts::row_max", SIMD, "row_max"),
    SimdKernel("ts::row_sum", SIMD, "row_sum"),
    SimdKernel("ts::exp_minus", SIMD, "exp_minus", when=None),
    SimdKernel("ts::divide_rows", SIMD, "divide_rows"),
)
TABLE: Final[Mapping[tuple[str, str], SimdKernel]] = {(k.op, k.name): k for k in _KERNELS}


def is_available() -> bool:
    """Whether these kernels can run here: they are built, and the processor has one of their instruction sets."""
    try:
        from tskernels import _cpu  # built for x86-64 only
    except ImportError:
        return False
    return _cpu.isa() is not None
