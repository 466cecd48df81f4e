"""Weights of a graph that a pass may join into one, which the artifact then stores."""

from __future__ import annotations

from collections.abc import Sequence

import torch.fx

from tsc.graph import Input, JoinedType, NodeType
from tskernels.registry import ROWS

WeightKey = tuple[str, str, str]
"""A weight of a program: its entry, one of its graphs, and what the checkpoint calls the weight below the graph's prefix."""


def is_private(node: torch.fx.Node) -> bool:
    """Whether it is a weight that one op reads, and not joined yet."""
    return (
        node.op == "placeholder"
        and node.meta["input"].kind == "weight"
        and len(node.users) == 1
        and isinstance(node.meta["type"], NodeType)
    )


def tensor_of(weight: torch.fx.Node) -> str:
    """What the checkpoint calls a weight, below its graph's prefix."""
    kind: Input = weight.meta["input"]
    return kind.tensor("")


def join(graph: torch.fx.Graph, weights: Sequence[torch.fx.Node], layout: str = ROWS) -> torch.fx.Node:
    """One weight of them all, along their outputs, in a layout. Those that were there are left for the caller to erase."""
    with graph.inserting_before(weights[0]):  # placeholders keep their order
        name = "_".join(w.name for w in weights)
        weight = graph.create_node("placeholder", name, (), {}, name=name)
        weight.target = weight.name
    parts = tuple(p for w in weights for p in w.meta["input"].parts)
    weight.meta.update(
        type=JoinedType(tuple(p.type for p in parts), 0), span=weights[0].meta["span"], input=Input("weight", parts=parts, layout=layout)
    )
    return weight
