"""Which ranks share an axis of a mesh. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping


def group_members(sizes: Mapping[str, int], rank: int, axis: str) -> tuple[int, ...]:
    """Mesh ranks that differ from `rank` only in the axes of `axis`, the first of them major."""
    strides: dict[str, int] = {}
    stride = 1
    for name in reversed(list(sizes)):
        strides[name] = stride
        stride *= sizes[name]
    names = axis.split("*")
    unknown = [name for name in names if name not in sizes]
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"axis `{axis}` is not made of different axes of the mesh ({', '.join(sizes) or 'which has none'})")
    members: tuple[int, ...] = (rank - sum(rank // strides[name] % sizes[name] * strides[name] for name in names),)
    for name in names:
        members = tuple(member + index * strides[name] for member in members for index in range(sizes[name]))
    return members
