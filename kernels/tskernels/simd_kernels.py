"""The C++ kernels in the registry, and as functions of torch tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from tskernels.cost import Cost, machine
from tskernels.dtypes import dtype_name
from tskernels.layouts import QUANTIZED
from tskernels.registry import Call, Kernel, Operand, add_kernel, kernels, op_named
from tskernels.rope import radians
from tskernels.simd import TABLE, TARGET, SimdKernel, is_available

if TYPE_CHECKING:
    from tskernels import _cpu


Result = tuple[Sequence[Tensor], Tensor]
"""The operands of a call, and where its result goes."""


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


def program(kernel: SimdKernel, calls: Sequence[Result], given: Mapping[str, Any], constants: Sequence[float]) -> _cpu.Program:
    """Several calls of a kernel as a step would make them. given: attributes and coordinates by name."""
    from tskernels import _cpu

    made = _cpu.Program(_cpu.Arena(), 0, 0)
    for operands, out in calls:
        made.add(kernel.symbol, [operand(x) for x in operands], operand(out), kernel.numbers(given), constants)
    return made


def _function(kernel: SimdKernel) -> Callable[..., Any]:
    op = op_named(kernel.op)

    def call(*arguments: Any, out: Tensor | None = None, constants: Sequence[float] | None = None, **attributes: Any) -> Tensor | None:
        given = dict(zip(op.parameters, arguments, strict=False)) | attributes
        tensors = [value for value in given.values() if isinstance(value, Tensor)]
        numbers = {name: value for name, value in given.items() if value is not None and not isinstance(value, Tensor)}
        target = tensors[0] if out is None else out
        if constants is None:
            constants = _constants(kernel, tensors, numbers)
        run(kernel, tensors, target, numbers, constants)
        return target if out is None else None

    return call


def _constants(kernel: SimdKernel, tensors: Sequence[Tensor], attributes: Mapping[str, Any]) -> Sequence[float]:
    """What a kernel wants computed when a program is compiled, where none was."""
    if not kernel.takes_constants:
        return ()
    if kernel.symbol in _OF_PACKED:
        raise TypeError(f"kernel `{kernel.name}` of {kernel.op} is to be given its constants: what is stored does not tell them")
    call = Call(kernel.op, tuple(Operand(dtype_name(t.dtype), tuple(t.shape)) for t in tensors), attributes)
    return _CONSTANTS[kernel.symbol](call)


def _table_rows(call: Call) -> Sequence[float]:
    """Of the table, which its bytes do not tell."""
    rows = call.operands[1].shape[0]
    assert rows is not None, "the rows of a table are known when a program is compiled"
    return [float(rows)]


_OF_PACKED: Final = frozenset(f"embedding_{name}" for name in QUANTIZED)
_CONSTANTS: Final[Mapping[str, Callable[[Call], Sequence[float]]]] = {"rope": radians, **dict.fromkeys(_OF_PACKED, _table_rows)}
"""By the name in C++."""


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
        # Of torch tensors, a collective is what the communicator makes of it, which may reach ranks of other hosts.
        function = reference.function if kernel.collective else _function(kernel)
        cost = _without_launch(kernel.cost or reference.cost)
        constants = _CONSTANTS[kernel.symbol] if kernel.takes_constants else None
        facts = (kernel.op, kernel.name, op.kind, function, TARGET, ("f32", "bf16"), kernel.when, cost, __file__)
        add_kernel(Kernel(*facts, kernel.layouts, constants, fixed_bits=True))


if is_available():
    _register()
