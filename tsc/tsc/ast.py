"""The syntax tree of a model file. Every node is frozen and carries its span, which equality ignores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tsc.spans import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    span: Span = field(compare=False, repr=False)


# --- expressions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Name(Node):
    text: str


@dataclass(frozen=True, slots=True)
class Constant(Node):
    """An int, float, string, bool or none."""

    value: int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class Unary(Node):
    operator: Literal["-", "!"]
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(Node):
    operator: Literal["+", "-", "*", "/", "%", "**", "==", "!=", "<", "<=", ">", ">=", "&&", "||", "??"]
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Conditional(Node):
    """`if condition then a else b`, on config values only."""

    condition: Expr
    then: Expr
    otherwise: Expr


@dataclass(frozen=True, slots=True)
class Attribute(Node):
    """`value.name`."""

    value: Expr
    name: str


@dataclass(frozen=True, slots=True)
class Index(Node):
    """`value[a, b]`."""

    value: Expr
    indices: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Argument(Node):
    """A call's argument; `name` is None when positional."""

    name: str | None
    value: Expr


@dataclass(frozen=True, slots=True)
class Call(Node):
    """`f(a, k = b)`, `cache.append(k, v)`, or `Module<"prefix">(x)` when prefix is not None."""

    function: Expr
    arguments: tuple[Argument, ...]
    prefix: str | None = None


Expr = Name | Constant | Unary | Binary | Conditional | Attribute | Index | Call


# --- types ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FactorRef(Node):
    """A factor of a dimension: a config name, a dynamic name or an integer, and the mesh axis that splits it."""

    name: str | int
    axis: str | None = None


@dataclass(frozen=True, slots=True)
class Dimension(Node):
    """One dimension: its factors from major to minor."""

    factors: tuple[FactorRef, ...]


@dataclass(frozen=True, slots=True)
class Partial(Node):
    """`sum tp` after the dimensions."""

    reduction: str
    axis: str


@dataclass(frozen=True, slots=True)
class TensorType(Node):
    """`bf16[T, (K@kv, E) | sum tp]`; `dtype` None is the model's element type."""

    dtype: str | None
    dimensions: tuple[Dimension, ...]
    partials: tuple[Partial, ...] = ()


# --- statements ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weight(Node):
    """`weight NAME: TYPE = "tensor" [from START] [tied OTHER [when CONDITION]]`, or `[when CONDITION]` without a tie."""

    name: str
    type: TensorType
    tensor: str
    tied: str | None = None
    condition: Expr | None = None
    start: Expr | None = None


@dataclass(frozen=True, slots=True)
class Cache(Node):
    """`cache NAME: paged[@axis] TYPE [window W]`: `axis` splits the pages."""

    name: str
    kind: str
    type: TensorType
    window: Expr | None = None
    axis: str | None = None


@dataclass(frozen=True, slots=True)
class Let(Node):
    """`let a, b: TYPE = value`: one name or several, the type pins what the value must be."""

    names: tuple[str, ...]
    type: TensorType | None
    value: Expr


@dataclass(frozen=True, slots=True)
class Keep(Node):
    """`keep NAME: type = value`, in an entry: rows of the step that other entries of the file may take."""

    name: str
    type: TensorType
    value: Expr


@dataclass(frozen=True, slots=True)
class Assign(Node):
    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Return(Node):
    values: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class For(Node):
    """`for i in first..last carry x { ... }`."""

    variable: str
    first: Expr
    last: Expr
    carried: tuple[str, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class If(Node):
    condition: Expr
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] = ()


Statement = Weight | Cache | Let | Keep | Assign | Return | For | If


# --- declarations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Binding(Node):
    """`NAME = value` in a config block."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Requirement(Node):
    """`require condition` in a config block: what the model file takes for granted of a checkpoint."""

    condition: Expr


@dataclass(frozen=True, slots=True)
class Unused(Node):
    """`unused "pattern"` in a config block: tensors of the checkpoint that the model file leaves out, `*` for any text."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Axis(Node):
    """`tp`, or `tp = kv * q where kv = gcd(K, tp)`: an axis as the product of others, major to minor."""

    name: str
    product: tuple[str, ...] = ()
    bindings: tuple[Binding, ...] = ()


@dataclass(frozen=True, slots=True)
class Parameter(Node):
    """A module's parameter: a tensor, or a static value when type is None (`window`)."""

    name: str
    type: TensorType | None


@dataclass(frozen=True, slots=True)
class Module(Node):
    """`module NAME(params) -> TYPE [strict] { ... }`; `entry` when is_entry."""

    name: str
    parameters: tuple[Parameter, ...]
    result: TensorType
    body: tuple[Statement, ...]
    is_entry: bool = False
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ModelFile(Node):
    """A whole file."""

    architectures: tuple[str, ...]
    config: tuple[Binding, ...]
    requirements: tuple[Requirement, ...]
    unused: tuple[Unused, ...]
    axes: tuple[Axis, ...]
    modules: tuple[Module, ...]
