"""Tensor types: an element type, factored dimensions, and one placement per mesh axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsc.mesh import Mesh

DYNAMIC = ("T", "S")
"""Tokens in the step and sequences in the step; every other dimension is known once the config is."""

PAGES = "pages"
"""The first dimension of a cache. Ranks that split it keep sequences of their own, each in as many pages as it has room for."""

SPLITTABLE = ("T", PAGES)
"""The extents not known before a step that an axis may split: a step's tokens are padded to a multiple of its ranks."""

STEP_EXTENTS = (*DYNAMIC, PAGES, "S.pages")
"""Every extent that is not known before a step: also the pages of the longest sequence."""

AxisPlacement = None | int | str
"""On one mesh axis a value is replicated (None), split on its factor of that index (int), or pending a reduction (`"sum"`)."""

Placement = tuple[AxisPlacement, ...]
"""One AxisPlacement for each axis of the mesh that has more than one rank, in mesh order."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A named extent; `size` None is dynamic (T, S) or not known (no config given)."""

    name: str
    size: int | None

    @property
    def is_dynamic(self) -> bool:
        return self.name in STEP_EXTENTS

    def agrees(self, other: Factor) -> bool:
        """Whether the two are the same extent: by name, since a model's dimension names have one meaning."""
        return self.name == other.name and (self.size == other.size or None in (self.size, other.size))


@dataclass(frozen=True, slots=True)
class Shape:
    """Factors from major to minor, and how many of them each physical dimension joins."""

    dtype: str  # "" is the model's element type
    factors: tuple[Factor, ...]
    groups: tuple[int, ...]

    @staticmethod
    def of(dtype: str, dimensions: Sequence[Sequence[Factor]]) -> Shape:
        return Shape(dtype, tuple(f for d in dimensions for f in d), tuple(len(d) for d in dimensions))

    def dimensions(self) -> list[tuple[Factor, ...]]:
        result, start = [], 0
        for count in self.groups:
            result.append(self.factors[start : start + count])
            start += count
        return result

    def ungrouped(self) -> Shape:
        """The same value with a dimension for each factor."""
        return replace(self, groups=(1,) * len(self.factors))

    def agrees(self, other: Shape) -> bool:
        """Same element type and factors, however grouped."""
        return (
            self.dtype == other.dtype
            and len(self.factors) == len(other.factors)
            and all(a.agrees(b) for a, b in zip(self.factors, other.factors, strict=True))
        )

    def text(self, mesh: Mesh | None = None, placement: Placement = (), dtype: str = "") -> str:
        """The type as an author writes it, `bf16[T, K@kv, G@q, E | sum tp]`."""
        axes: list[list[str]] = [[] for _ in self.factors]
        partial: dict[str, list[str]] = {}
        if mesh is not None:
            for axis, place in zip(mesh.active, placement, strict=True):
                if isinstance(place, int):
                    axes[place].append(axis.name)
                elif place is not None:
                    partial.setdefault(place, []).append(axis.name)
        names = [f.name + ("@" + mesh.name_of(a) if mesh and a else "") for f, a in zip(self.factors, axes, strict=True)]
        parts, start = [], 0
        for count in self.groups:
            group = names[start : start + count]
            parts.append(group[0] if count == 1 else f"({', '.join(group)})")
            start += count
        pending = ", ".join(f"{op} {mesh.name_of(a)}" for op, a in partial.items()) if mesh else ""
        return f"{self.dtype or dtype}[{', '.join(parts)}{' | ' + pending if pending else ''}]"


def local_dimensions(shape: Shape, mesh: Mesh, placement: Placement) -> tuple[int | str, ...]:
    """A rank's physical dimensions: sizes, or the names of the dynamic ones (`T`, `S`, ...), `T/4` where four ranks split the tokens.

    Raises ValueError when an extent is not known: lowering needs the config.
    """
    ranks = [1] * len(shape.factors)
    for axis, place in zip(mesh.active, placement, strict=True):
        if isinstance(place, int):
            ranks[place] *= axis.known_size
    result: list[int | str] = []
    start = 0
    for count in shape.groups:
        group = shape.factors[start : start + count]
        if len(group) == 1 and group[0].is_dynamic:
            is_own = ranks[start] == 1 or group[0].name == PAGES  # of pages each rank has its own number
            result.append(group[0].name if is_own else f"{group[0].name}/{ranks[start]}")
        else:
            extent = 1
            for factor, n in zip(group, ranks[start : start + count], strict=True):
                if factor.size is None:
                    raise ValueError(f"the size of {factor.name} is not known")
                extent *= factor.size // n
            result.append(extent)
        start += count
    return tuple(result)
