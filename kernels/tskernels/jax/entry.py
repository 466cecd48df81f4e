"""Registering a kernel for the target family `jax`: a pure function of JAX's arrays.

It takes the op's operands and attributes, and no `out`: it returns the result, of a view or of an op that changes its first operand
too. An op that writes an operand beside giving a result returns both. A step is traced with 64-bit types: arrays say what theirs is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from tskernels.cost import Cost, bandwidth_bound
from tskernels.dtypes import FLOATS
from tskernels.registry import Kernel, When, add_kernel, op_named
from tskernels.target import JAX, Target

Function = TypeVar("Function", bound=Callable[..., Any])


def jax_kernel(
    op: str, *, name: str = "xla", target: Target = JAX, when: When | None = None, cost: Cost = bandwidth_bound
) -> Callable[[Function], Function]:
    """Register a kernel of a known op, by the registry's rules (`registry.kernel`)."""

    def register(function: Function) -> Function:
        known = op_named(op)
        code = inspect.unwrap(function).__code__
        place = f"{code.co_filename}:{code.co_firstlineno}"
        parameters = tuple(inspect.signature(function).parameters)
        if parameters != known.parameters:
            raise TypeError(
                f"{place}: kernel `{name}` of {op} takes ({', '.join(parameters)}), but it must take ({', '.join(known.parameters)})"
            )
        add_kernel(Kernel(op, name, known.kind, function, target, FLOATS, when, cost, place))
        return function

    return register
