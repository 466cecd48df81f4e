"""Compute each thing once, and nothing that is not read.

Assumes: every op but those on caches is a function of its operands. Guarantees: no two nodes of a graph with one op, operands and
attributes (so no value is gathered or reduced twice), no node without a reader but what writes a cache or is kept, no weight either.
Does not: reorder; look across graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.fx

from tsc.graph import CACHE_WRITES, Program, op_of


@dataclass(frozen=True, slots=True)
class Simplify:
    name: ClassVar[str] = "simplify"

    def run(self, program: Program) -> Program:
        for graph in program.graphs.values():
            _share(graph)
            _prune(graph)
            graph.lint()
        return program


def _share(graph: torch.fx.Graph) -> None:
    seen: dict[Any, torch.fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or op_of(node) in CACHE_WRITES:
            continue
        key = (node.target, node.args, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(node.kwargs.items())))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _prune(graph: torch.fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        is_weight = node.op == "placeholder" and node.meta["input"].kind == "weight"
        is_pure = node.op == "call_function" and op_of(node) not in (*CACHE_WRITES, "keep")
        if (is_weight or is_pure) and not node.users:
            graph.erase_node(node)
