"""Operands of calls on real memory, as a step of so many tokens would have them: for measurements.

A rank's weights and pages lie in huge pages, and are in no processor's cache when a step comes to them: of each there are as many copies
as a cache can not hold, which take turns. What the step has just made is in the cache.
"""

from __future__ import annotations

import contextlib
import inspect
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Final

import torch
from torch import Tensor

import tskernels.library  # noqa: F401  (torch.ops.ts, whose shape functions say what a call gives)
from tskernels.dtypes import FLOATS, torch_dtype
from tskernels.layouts import layout
from tskernels.registry import ROWS, Call, op_named

COLD_BYTES: Final = 96 << 20
"""More than the last cache of a processor keeps for one of its users."""
MOST_COPIES: Final = 512
CONTEXT: Final = 1024
"""Tokens that a sequence has in its cache before the step."""
PAGE: Final = 64


def _ids(call: Call, tokens: int) -> Mapping[int, Tensor]:
    rows = call.operands[1].shape[0]
    assert rows is not None, "the rows of a table are known when a program is compiled"
    return {0: torch.randint(rows, (tokens,), dtype=torch.int32)}


def _positions(call: Call, tokens: int) -> Mapping[int, Tensor]:
    return {1: torch.arange(CONTEXT, CONTEXT + tokens, dtype=torch.int32)}


def _rows(call: Call, tokens: int) -> Mapping[int, Tensor]:
    return {1: torch.arange(tokens, dtype=torch.int32)}


def _cache(call: Call, index: int, tokens: int) -> Tensor:
    operand = call.operands[index]
    sizes = [size for size in operand.shape if size is not None]
    return torch.randn(ceil((CONTEXT + tokens) / PAGE), PAGE, *sizes).to(torch_dtype(operand.dtype))


def _attended(call: Call, tokens: int) -> Mapping[int, Tensor]:
    """One sequence, whose newest tokens are those of the step, which the last three operands say."""
    cache = _cache(call, 1, tokens)
    facts = [[[0, tokens]], [CONTEXT + tokens], [list(range(len(cache)))]]
    return {1: cache} | {len(call.operands) - 3 + index: torch.tensor(fact, dtype=torch.int32) for index, fact in enumerate(facts)}


def _appended(call: Call, tokens: int) -> Mapping[int, Tensor]:
    return {0: _cache(call, 0, tokens), 3: torch.arange(CONTEXT, CONTEXT + tokens, dtype=torch.int32)}


Given = Callable[[Call, int], Mapping[int, Tensor]]
_GIVEN: Final[Mapping[str, Given]] = {
    **dict.fromkeys(
        ("linear", "gated_linear", "rms_norm", "silu", "gelu", "gelu_tanh", "add", "mul", "scale", "softcap"), lambda call, tokens: {}
    ),
    "embedding": _ids,
    "rope": _positions,
    "take_rows": _rows,
    "attention": _attended,
    "sink_attention": _attended,
    "cache_append": _appended,
}
"""The operands that are not just numbers, of the ops that are measured. Collectives take other ranks; what experts and a screened head
cost depends on what they are given."""
_CACHES: Final = {"ts::attention": 1, "ts::sink_attention": 1, "ts::cache_append": 0}


def is_measurable(call: Call) -> bool:
    """Whether operands can be made up for it, and its weights are in layouts that the compiler chooses."""
    return call.op.removeprefix("ts::") in _GIVEN and all(layout(operand.layout).is_chosen for operand in call.operands)


def in_rows(call: Call) -> Call:
    """The call with all operands stored by rows: what calls that are alternatives of each other have in common."""
    return replace(call, operands=tuple(replace(operand, layout=ROWS) for operand in call.operands))


def of_step(call: Call, tokens: int) -> Call:
    """The call with the sizes that samples of it have in a step of so many tokens."""
    given = _GIVEN[call.op.removeprefix("ts::")](call, tokens)
    shapes = (given[i].shape if i in given else (tokens if n is None else n for n in o.shape) for i, o in enumerate(call.operands))
    return replace(call, operands=tuple(replace(o, shape=tuple(s)) for o, s in zip(call.operands, shapes, strict=True)))


@dataclass(slots=True)
class Samples:
    """Operands of calls that differ in the layouts of their weights alone."""

    _rows: dict[int, Tensor] = field(default_factory=dict)
    _copies: dict[tuple[int, str], list[Tensor]] = field(default_factory=dict)

    def calls(self, call: Call, tokens: int) -> Sequence[tuple[list[Tensor], Tensor]]:
        """Operands and results of calls like those that a step makes one after the other."""
        given = _GIVEN[call.op.removeprefix("ts::")](call, tokens)
        columns = [self._column(call, index, tokens, given.get(index)) for index in range(len(call.operands))]
        rows = [[column[i % len(column)] for column in columns] for i in range(max(map(len, columns)))]
        if op_named(call.op).kind == "inplace":
            return [(operands, operands[0]) for operands in rows]
        out = self._result(call, rows[0])
        return [(operands, out) for operands in rows]

    def _column(self, call: Call, index: int, tokens: int, given: Tensor | None) -> list[Tensor]:
        """An operand, in as many copies as it takes."""
        operand = call.operands[index]
        if given is not None:
            return _copies(given) if _CACHES.get(call.op) == index else [given]
        if operand.dtype not in FLOATS:
            raise ValueError(f"{call.op} takes {operand} as operand {index}, which can not be made up")
        dtype = torch_dtype(operand.dtype)
        if None in operand.shape:
            return [torch.randn([tokens if n is None else n for n in operand.shape]).to(dtype)]
        key = (index, operand.layout)
        if key not in self._copies:
            if index not in self._rows:
                self._rows[index] = torch.randn([n for n in operand.shape if n is not None]).to(dtype)
            self._copies[key] = _copies(layout(operand.layout).pack(self._rows[index]))
        return self._copies[key]

    def _result(self, call: Call, operands: Sequence[Tensor]) -> Tensor:
        shown = [self._rows.get(index, x).to("meta") for index, x in enumerate(operands)]
        shape = getattr(torch.ops.ts, call.op.removeprefix("ts::"))(*shown, *coordinates(call), **call.attributes).shape
        return torch.empty(shape, dtype=operands[0].dtype if operands[0].is_floating_point() else shown[1].dtype)


def coordinates(call: Call) -> Sequence[int]:
    """What follows a call's operands: the first rank's coordinates."""
    parameters = inspect.signature(op_named(call.op).reference).parameters.values()
    missing = (p for p in list(parameters)[len(call.operands) :] if p.name not in call.attributes)
    return [0 for p in missing if p.default is inspect.Parameter.empty]


def given(call: Call) -> Mapping[str, Any]:
    """Attributes and coordinates by name."""
    parameters = op_named(call.op).parameters[len(call.operands) :]
    return dict(zip(parameters, coordinates(call), strict=False)) | dict(call.attributes)


def _copies(tensor: Tensor) -> list[Tensor]:
    """As many as no cache holds, in huge pages where there are any."""
    size = tensor.numel() * tensor.element_size()
    room = -(-size // 64) * 64
    count = min(MOST_COPIES, ceil(COLD_BYTES / max(size, 1)))
    memory = mmap.mmap(-1, max(room * count, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)  # which keeps the memory
    copies = [whole[i * room : i * room + size].view(tensor.dtype).view(tensor.shape) for i in range(count)]
    for copy in copies:
        copy.copy_(tensor)
    return copies
