"""The ops in torch.library, namespace `ts`: `torch.ops.ts.rms_norm(x, w, 1e-6, 0.0)` runs the reference.

Importing defines them all; `define_ops()` again adds ops that a plug-in has registered since.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from tskernels.communicator import current
from tskernels.registry import Op, op_named, ops

_TYPES: Final[dict[object, str]] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "int",
    float: "float",
    str: "str",
    bool: "bool",
    Sequence[int]: "int[]",
    Sequence[float]: "float[]",
}
_ALIASING: Final = {"compute": "Tensor", "collective": "Tensor", "view": "Tensor(a)", "inplace": "Tensor(a!)"}
# Lives as long as the process: its end undefines the ops. torch leaves it untyped.
_library: Any = torch.library.Library("ts", "FRAGMENT")  # type: ignore[no-untyped-call]
_defined: set[str] = set()


def schema(op: Op) -> str:
    """The torch schema of an op, from its reference's annotations."""
    hints = typing.get_type_hints(op.reference, localns={"Tensor": Tensor})  # those of the views are there for type checkers alone
    parameters = []
    for position, (name, parameter) in enumerate(inspect.signature(op.reference).parameters.items()):
        kind = _TYPES.get(hints[name])
        if kind is None:
            raise TypeError(f"{op.place}: {op.name} has parameter `{name}` of type {hints[name]}, which torch.library does not know")
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        kind = _ALIASING[op.kind] if position == 0 and op.kind in ("view", "inplace") else "Tensor(a!)" if name == op.writes else kind
        parameters.append(f"{kind} {name}" + ("" if parameter.default is inspect.Parameter.empty else f"={parameter.default}"))
    return f"{op.name.removeprefix('ts::')}({', '.join(parameters)}) -> {_ALIASING[op.kind]}"


def define_ops() -> None:
    """Define every registered op that is not defined yet."""
    for name in ops():
        if name in _defined or not name.startswith("ts::"):
            continue
        short = name.removeprefix("ts::")
        _defined.add(name)
        op = op_named(name)
        _library.define(schema(op))
        _library.impl(short, op.reference, "CompositeExplicitAutograd")
        # A shape function runs on tensors without data; most references are their own.
        _library.impl(short, _SHAPES.get(name, op.reference), "Meta")


def _like_first(x: Tensor, *_operands: object) -> Tensor:
    return x.new_empty(x.shape)


def _resized(x: Tensor, dim: int, times: int = 1, over: int = 1) -> Tensor:
    shape = list(x.shape)
    shape[dim] = shape[dim] * times // over
    return x.new_empty(shape)


def _heads(x: Tensor, q_heads: int, k_heads: int, width: int, *_attributes: object, **_named: object) -> Tensor:
    return x.new_empty(x.shape[0], (q_heads + k_heads) * width)


def _all_to_all(x: Tensor, axis: str, split_dim: int, concat_dim: int) -> Tensor:
    size = current().axis(axis).size
    return _resized(_resized(x, split_dim, over=size), concat_dim, times=size)


_SHAPES: Final[dict[str, Callable[..., Tensor]]] = {
    "ts::rope": _like_first,
    "ts::qk_rope": lambda x, _positions, *attributes, **named: _heads(x, *attributes, **named),
    "ts::qk_norm_rope": lambda x, _positions, _q_norm, _k_norm, *attributes, **named: _heads(x, *attributes, **named),
    "ts::attention": _like_first,
    "ts::sink_attention": _like_first,
    "ts::cache_append": lambda cache, *_operands: cache,
    "ts::latent_append": lambda cache, *_operands: cache,
    "ts::latent_attention": _like_first,
    "ts::expanded_attention": lambda few, *_operands, **_attributes: few,
    "ts::short_conv": _like_first,
    "ts::gated_delta": lambda q, k, v, *_operands, **_attributes: _like_first(v),
    "ts::route": lambda logits, *_operands, **_attributes: _like_first(logits),
    "ts::experts": lambda x, *_operands, **_attributes: _like_first(x),
    "ts::all_reduce": _like_first,
    "ts::all_reduce_add": _like_first,
    "ts::all_reduce_add_norm": lambda x, *_operands, **_attributes: _resized(x, 1, times=2),
    "ts::keep_first": _like_first,
    "ts::all_gather": lambda x, axis, dim: _resized(x, dim, times=current().axis(axis).size),
    "ts::reduce_scatter": lambda x, axis, dim: _resized(x, dim, over=current().axis(axis).size),
    "ts::all_to_all": _all_to_all,
}

define_ops()
