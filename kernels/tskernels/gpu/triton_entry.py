"""Registering a planner of Triton's kernels, which are the same for all GPUs; and what planners have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Final

from tskernels.cache_layouts import CACHE_LAYOUTS, FP8_CACHE
from tskernels.cost import Cost, bandwidth_bound
from tskernels.gpu.entry import gpu_kernel
from tskernels.gpu.launch import Argument, Launch, Number, Plan, Planner, Scalar, TritonSource, Variant, Verification
from tskernels.gpu.sizes import Dimension, Expression, Stride
from tskernels.registry import Call, When, one_float_type
from tskernels.target import CUDA, ROCM, Target

FLOATS: Final = ("bf16", "f16", "f32")
MULTIPLE: Final = 8
"""Elements that rows are apart in multiples of: so widths are, of models that a GPU runs."""
COMPILED: Final = Verification("compiled")
RUN: Final = Verification("run", "NVIDIA H100", "2026-11-27")
"""By benchmarks/triton_kernels.py."""


def triton_kernel(
    op: str,
    *,
    dtypes: tuple[str, ...] = FLOATS,
    when: When | None = None,
    cost: Cost = bandwidth_bound,
    layouts: Mapping[int, str] = MappingProxyType({}),
    constants: Callable[[Call], Sequence[float]] | None = None,
    suffix: str = "",
    verified: Verification = RUN,
) -> Callable[[Planner], Planner]:
    """`triton` for NVIDIA's, `triton_rocm` for AMD's, by the registry's rules; suffix: what more the name says. All are interpreted
    and compiled for each architecture (tests/gpu); verified: how far NVIDIA's was."""

    def register(planner: Planner) -> Planner:
        for name, target, level in (("triton", CUDA, verified), ("triton_rocm", ROCM, COMPILED)):
            gpu_kernel(
                op,
                name=name + suffix,
                target=target,
                dtypes=dtypes,
                when=when,
                cost=cost,
                layouts=layouts,
                constants=constants,
                verified=level,
            )(planner)
        return planner

    return register


def cache_kernel(
    op: str, cache: int, *, cost: Cost, when: When = one_float_type, verified: Verification = RUN
) -> Callable[[Planner], Planner]:
    """`triton_kernel` of an op on a cache, the operand of this number: by rows, and in fp8. verified: by rows."""

    def register(planner: Planner) -> Planner:
        triton_kernel(op, when=when, cost=cost, verified=verified)(planner)
        fp8 = {cache: FP8_CACHE}
        return triton_kernel(op, when=when, cost=cost, layouts=fp8, suffix=f"_{FP8_CACHE}", verified=COMPILED)(planner)

    return register


def source(family: str, function: str) -> TritonSource:
    """A function of this folder's module `FAMILY_triton`."""
    return TritonSource(f"tskernels.gpu.{family}_triton", function)


def plan(*launches: Launch) -> Plan:
    """What runs in steps of any size, without memory of its own."""
    return Plan((Variant(launches),))


def size(call: Call, operand: int, index: int) -> int:
    """Of a dimension that is known when a program is compiled."""
    found = call.operands[operand].shape[index]
    assert found is not None, f"{call}: dimension {index} of operand {operand} is known when a program is compiled"
    return found


def rows(operand: int = 0) -> Expression:
    """How many rows an operand has: tokens, or rows of logits."""
    return Dimension(operand, 0)


def inner(call: Call, operand: int = 0) -> tuple[int, ...]:
    """An operand's dimensions but for the first, which a step says."""
    return tuple(size(call, operand, i) for i in range(1, len(call.operands[operand].shape)))


def stored_type(call: Call, operand: int) -> str:
    """What lies where a cache does."""
    given = call.operands[operand]
    return CACHE_LAYOUTS[given.layout].stored(given.dtype, [size(call, operand, i) for i in range(2, len(given.shape))])[0]


def width(call: Call, operand: int = 0) -> int:
    """Elements of a row."""
    return prod(inner(call, operand))


def stride(operand: int, index: int) -> Argument:
    """Elements from one to the next."""
    return Scalar(Stride(operand, index), "i32", MULTIPLE)


def number(call: Call, name: str, default: Number | None = None) -> Number:
    """An attribute."""
    found = call.attributes.get(name, default)
    assert isinstance(found, int | float)
    return found


def only(types: Mapping[str, str], arguments: Mapping[str, Argument]) -> dict[str, str]:
    """The types of those arguments that are addresses."""
    return {name: kind for name, kind in types.items() if name in arguments}


def padded(number: int, least: int = 1) -> int:
    """The power of two from there on."""
    return max(least, 1 << (number - 1).bit_length())


def is_hopper(target: Target) -> bool:
    return "sm_90a" in target.features


def is_nvidia(target: Target) -> bool:
    return target.family == CUDA.family
