"""The typed program: each module instance as a list of operations over typed values, before collectives.

Instances are distinct by their static arguments: the layers of a model that are alike are one instance, called many times.
Nothing here needs torch, so that `tsc check` and `tsc plan` answer at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tsc.mesh import Mesh
from tsc.signatures import Signature
from tsc.spans import Span
from tsc.types import Placement, Shape

ValueKind = Literal["parameter", "step", "kept", "weight", "cache", "result"]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of an instance. `placement` is set where it is declared (parameters, weights, caches), else inferred. `kept`: a parameter of
    an entry, which another entry keeps."""

    name: str
    kind: ValueKind
    shape: Shape
    span: Span
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class WeightDeclaration:
    """`tensor` is the checkpoint's name below the instance's prefix; with `{N}`, N its first dimension, one for each of N tensors."""

    value: int
    tensor: str
    tied: str | None


@dataclass(frozen=True, slots=True)
class CacheDeclaration:
    value: int
    kind: str
    window: int


@dataclass(frozen=True, slots=True)
class Operation:
    """result = op(operands; attributes). A `call` has the instance's key and prefix in its attributes. `written`: the function that the
    author wrote, where that is another."""

    op: str
    operands: tuple[int, ...]
    result: int
    signature: Signature
    span: Span
    attributes: Mapping[str, Any] = field(default_factory=dict)
    written: str = ""

    @property
    def name(self) -> str:
        """What an author knows it by."""
        return self.written or self.op


@dataclass(frozen=True, slots=True)
class CallTarget:
    """Which instance a call runs, below which checkpoint prefix."""

    instance: str
    prefix: str


@dataclass
class Instance:
    """A module with its static arguments bound."""

    name: str
    module: str
    strict: bool
    values: list[Value] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)
    weights: list[WeightDeclaration] = field(default_factory=list)
    caches: list[CacheDeclaration] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    result: int = -1
    result_placement: Placement = ()
    result_span: Span | None = None


@dataclass(frozen=True)
class TypedModel:
    """Everything that elaboration finds out. `instances` are in order of first call, callees before callers."""

    architectures: tuple[str, ...]
    mesh: Mesh
    config: Mapping[str, Any]
    instances: Mapping[str, Instance]
    entry: str
    unused: tuple[str, ...] = ()  # patterns of checkpoint tensors that the model leaves out


def runs_of(typed: TypedModel) -> Iterator[tuple[str, Instance]]:
    """Each run of an instance in a step, callers first: the prefix of its tensors' names in the checkpoint, and the instance."""

    def walk(name: str, prefix: str) -> Iterator[tuple[str, Instance]]:
        instance = typed.instances[name]
        yield prefix, instance
        for operation in instance.operations:
            if operation.op == "call":
                target: CallTarget = operation.attributes["target"]
                yield from walk(target.instance, prefix + (f"{target.prefix}." if target.prefix else ""))

    return walk(typed.entry, "")


def stored_values(instance: Instance) -> frozenset[int]:
    """The weights, and what is made of weights alone: parts of them."""
    found = {i for i, v in enumerate(instance.values) if v.kind == "weight"}
    for operation in instance.operations:
        if operation.operands and found.issuperset(operation.operands):
            found.add(operation.result)
    return frozenset(found)
