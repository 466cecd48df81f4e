"""Which weights are stored quantized, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, assert_never

from tsc.checkpoint import Checkpoint
from tsc.graph import JoinedType
from tsc.importance import Importance
from tsc.mesh import Mesh
from tsc.program import Instance, TypedModel
from tsc.request import Quantize
from tsc.weights import StoredWeight, declared_weights
from tskernels.dtypes import size_bytes
from tskernels.layouts import STACKED, format_of, layout

MOST_ERRORS = 5
ROUNDED: Mapping[str, str] = {"int8": "q8_0", "int4": "int4"}
"""What floats are rounded to: formats with a scale for each 32 weights, and for each 32 of what they are multiplied with. With one for a
row (the format `int8`) outliers of activations cost SmolLM2 4 % of its perplexity."""


def wanted_formats(quantize: Quantize, typed: TypedModel, checkpoint: Checkpoint | None) -> Mapping[str, str]:
    """The format that each tensor of the checkpoint is to be stored in, if kernels take it. The blocks of a file are not shared out among
    ranks, but for those that kernels multiply as what they stand for: with several the others are dequantized."""
    match quantize:
        case "none":
            return {}
        case "auto":
            formats = {} if checkpoint is None else checkpoint.formats
            return formats if typed.mesh.ranks == 1 else {name: kind for name, kind in formats.items() if kind in STACKED}
        case "int8" | "int4":
            attended = {name: _of_shared_heads(instance) for name, instance in typed.instances.items()}
            found = {}
            for name, weight in declared_weights(typed):
                # Tables and the head, the entry's own and often one, suffer most: 4 bits there cost SmolLM2 6 % of its perplexity.
                needs_eight = weight.instance == typed.entry or weight.value in attended[weight.instance]
                found[name] = ROUNDED["int8" if needs_eight else quantize]
            return found
        case _:
            assert_never(quantize)


def _of_shared_heads(instance: Instance) -> set[int]:
    """The weights that queries, keys and values are projected with, where several query heads share each key: of the few of keys and values
    every later token and each of those heads sees the error, and those of queries are read together with them."""
    makers = {operation.result: operation for operation in instance.operations}

    def projection(value: int) -> Iterator[int]:
        while value in makers:
            operation = makers[value]
            if operation.op == "linear":
                yield operation.operands[1]
                return
            value = operation.operands[0]

    found: set[int] = set()
    for operation in instance.operations:
        if operation.op in ("attention", "sink_attention") and (instance.values[operation.operands[0]].shape.factors[2].size or 1) > 1:
            found.update(projection(operation.operands[0]))
            filled = makers.get(operation.operands[1])
            for kept in filled.operands[1:3] if filled is not None and filled.op == "cache_append" else ():
                found.update(projection(kept))
    return found


@dataclass(frozen=True, slots=True)
class Stored:
    """Weights of one format, or of an element type: how many numbers, in how many bytes, of all ranks."""

    format: str
    weights: int
    bytes: int

    @property
    def bits(self) -> float:
        return 8 * self.bytes / self.weights


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """stored: the quantized formats first, those with most weights first; errors: of the tensors that lost most, the worst first,
    relative; importance: what it was rounded by."""

    stored: Sequence[Stored]
    errors: Sequence[tuple[str, float]] = ()
    importance: Importance | None = None

    @property
    def formats(self) -> Mapping[str, int]:
        """The number of weights in each format; none where nothing is quantized."""
        return {s.format: s.weights for s in self.stored if format_of(s.format) is not None}

    @property
    def bits(self) -> float:
        """Of a weight on average."""
        return 8 * sum(s.bytes for s in self.stored) / max(sum(s.weights for s in self.stored), 1)

    def to_json(self) -> dict[str, Any]:
        stored = {s.format: {"weights": s.weights, "bytes": s.bytes, "bits_per_weight": round(s.bits, 3)} for s in self.stored}
        errors = [{"tensor": name, "relative_error": round(error, 6)} for name, error in self.errors]
        found = {"bits_per_weight": round(self.bits, 3), "stored": stored, "largest_errors": errors}
        return found if self.importance is None else found | {"importance": self.importance.to_json()}


def report(
    mesh: Mesh, weights: Sequence[StoredWeight], errors: Mapping[str, float], importance: Importance | None = None
) -> QuantizationReport:
    """What is stored, but for what only helps to read other weights."""
    numbers, sizes = Counter[str](), Counter[str]()
    for weight in weights:
        found = layout(weight.layout)
        if found.unpack is None:
            continue
        rows = JoinedType(tuple(p.type for p in weight.parts), 0)
        shape = [int(d) for d in rows.local(mesh)]
        dtype, stored = found.stored(rows.dtype, shape)
        name = format_of(weight.layout) or rows.dtype
        numbers[name] += prod(shape) * mesh.ranks
        sizes[name] += prod(stored) * size_bytes(dtype) * mesh.ranks
    order = sorted(numbers, key=lambda name: (format_of(name) is None, -numbers[name], name))
    worst = sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:MOST_ERRORS]
    return QuantizationReport([Stored(name, numbers[name], sizes[name]) for name in order], worst, importance)
