"""The device mesh: leaf axes from major to minor, and axes that are products of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Axis:
    """A leaf axis. `size` None: not given, taken as more than one rank and never checked for division."""

    name: str
    size: int | None

    @property
    def known_size(self) -> int:
        return 2 if self.size is None else self.size


@dataclass(frozen=True)
class Mesh:
    """Leaf axes, major to minor; a rank's coordinates are its row-major index over them."""

    axes: tuple[Axis, ...] = ()
    products: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # "tp" -> ("kv", "q")
    joined: frozenset[str] = frozenset()  # products of axes that have ranks of their own: `ep` of `dp * tp`

    @cached_property
    def active(self) -> tuple[Axis, ...]:
        """The axes that have more than one rank: a placement has an entry for each of these."""
        return tuple(a for a in self.axes if a.size != 1)

    @property
    def ranks(self) -> int:
        return math.prod(a.known_size for a in self.axes)

    def names(self) -> tuple[str, ...]:
        return (*self.products, *(a.name for a in self.axes))

    def leaves(self, name: str) -> tuple[str, ...] | None:
        """The leaf axes that a name stands for, or None if the mesh has no such axis."""
        if name in self.products:
            return self.products[name]
        return (name,) if any(a.name == name for a in self.axes) else None

    def name_of(self, leaves: Sequence[str]) -> str:
        """The shortest name for active leaf axes: a product of the mesh when they are all of it that is active, else `a*b`."""
        given = self._product_with_active(leaves, joined=False)
        if given is not None:
            return given
        return leaves[0] if len(leaves) == 1 else self._product_with_active(leaves, joined=True) or "*".join(leaves)

    def size_of(self, leaves: Sequence[str]) -> int:
        return math.prod(a.known_size for a in self.axes if a.name in leaves)

    def _product_with_active(self, leaves: Sequence[str], *, joined: bool) -> str | None:
        active = {a.name for a in self.active}
        for name, parts in self.products.items():
            if (name in self.joined) == joined and [p for p in parts if p in active] == list(leaves):
                return name
        return None
