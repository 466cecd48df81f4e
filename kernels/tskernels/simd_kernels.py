"""The C++ kernels in the registry, and as functions of torch tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tskernels.cost import Cost, machine
from tskernels.dtypes import dtype_name
from tskernels.registry import Call, Kernel, When, add_kernel, kernels, one_float_type, op_named
from tskernels.rope import inverse_frequencies
from tskernels.simd import TABLE, SimdKernel, is_available, target

if TYPE_CHECKING:
    from tskernels import _cpu


@cache
def _team() -> _cpu.Team:
    """For calls outside of a program."""
    from tskernels import _cpu

    return _cpu.Team(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))


def operand(tensor: Tensor) -> _cpu.Operand:
    """A tensor where it lies."""
    return "fixed", tensor.data_ptr(), 0, 0, dtype_name(tensor.dtype), tuple(tensor.shape), tuple(tensor.stride())


def run(kernel: SimdKernel, operands: Sequence[Tensor], out: Tensor, given: Mapping[str, Any], constants: Sequence[float]) -> None:
    """One call of a kernel, on its own."""
    from tskernels import _cpu

    _cpu.call(_team(), kernel.symbol, [operand(x) for x in operands], operand(out), kernel.numbers(given), constants)


def _function(kernel: SimdKernel) -> Callable[..., Any]:
    op = op_named(kernel.op)

    def call(*arguments: Any, out: Tensor | None = None, **attributes: Any) -> Tensor | None:
        given = dict(zip(op.parameters, arguments, strict=False)) | attributes
        tensors = [value for value in given.values() if isinstance(value, Tensor)]
        numbers = {name: value for name, value in given.items() if value is not None and not isinstance(value, Tensor)}
        target = tensors[0] if out is None else out
        run(kernel, tensors, target, numbers, constants_of(kernel.op, [tuple(t.shape) for t in tensors], numbers))
        return target if out is None else None

    return call


def constants_of(op: str, shapes: Sequence[Sequence[int | None]], attributes: Mapping[str, Any]) -> Sequence[float]:
    """What a kernel of an op wants computed beforehand: of `rope` the radians a position."""
    if op != "ts::rope":
        return ()
    width = shapes[0][-1]
    assert width is not None, "the width of a head is known when a program is compiled"
    found: Sequence[float] = inverse_frequencies(
        width, float(attributes["theta"]), attributes["kind"], tuple(map(float, attributes["parameters"]))
    ).tolist()
    return found


def _constants(call: Call) -> Sequence[float]:
    return constants_of(call.op, [o.shape for o in call.operands], call.attributes)


def _without_launch(cost: Cost) -> Cost:
    """A call in a program starts when the one before ends: nothing is launched."""
    return lambda call, target: max(0.0, cost(call, target) - machine(target).launch_seconds)


def _register() -> None:
    from tskernels import _cpu

    for kernel in TABLE.values():
        if not _cpu.has_kernel(kernel.symbol):
            continue
        op = op_named(kernel.op)
        [reference] = [k for k in kernels(kernel.op) if k.name == "reference"]
        cost = _without_launch(kernel.cost or reference.cost)
        constants = _constants if kernel.op == "ts::rope" else None
        function, when = _function(kernel), _WHEN.get(kernel.op, one_float_type)
        facts = (kernel.op, kernel.name, op.kind, function, target(), ("f32", "bf16"), when, cost, __file__)
        add_kernel(Kernel(*facts, kernel.layouts, constants))


_WHEN: Mapping[str, When] = {}

if is_available():
    _register()
