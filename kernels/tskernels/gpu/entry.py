"""Registering a kernel for GPUs: its planner is decorated, what runs it on torch tensors follows from the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tskernels.cost import Cost, bandwidth_bound
from tskernels.gpu.launch import Planner, Verification
from tskernels.registry import Call, Kernel, When, add_kernel, op_named
from tskernels.target import Target
from tskernels.toolchain import Compiler


def gpu_kernel(
    op: str,
    *,
    name: str,
    target: Target,
    dtypes: tuple[str, ...] = ("bf16", "f16"),
    when: When | None = None,
    cost: Cost = bandwidth_bound,
    layouts: Mapping[int, str] = MappingProxyType({}),
    constants: Callable[[Call], Sequence[float]] | None = None,
    verified: Verification | None = None,
    compilers: tuple[Compiler, ...] = ("triton",),
) -> Callable[[Planner], Planner]:
    """Register the planner of a kernel of a known op, by the registry's rules (`registry.kernel`). compilers: of its functions."""

    def register(planner: Planner) -> Planner:
        def run(*operands: Any, out: Any = None, **attributes: Any) -> Any:
            from tskernels.gpu.jit import run_plan  # needs triton

            return run_plan(op, planner, operands, out, attributes, layouts, constants)

        code = planner.__code__
        place = f"{code.co_filename}:{code.co_firstlineno}"
        facts = (op, name, op_named(op).kind, run, target, dtypes, when, cost, place, layouts, constants)
        add_kernel(Kernel(*facts, plan=planner, verified=verified, compilers=compilers))
        return planner

    return register
