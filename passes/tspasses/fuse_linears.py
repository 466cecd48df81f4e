"""Join matmuls that read the same value into one over joined weights: q, k and v; gate and up.

Assumes: weights are checkpoint tensors, so that joining them costs nothing at run time.
Guarantees: at most one matmul with private weights in one layout reads any value; each former result is a view (`narrow`) of the joint one.
Does not: join a weight that anything else reads (a tied embedding), weights in different layouts, a matmul with a bias and one without,
a matmul that is the graph's result (it has a place of its own, which a view has not), or change what a rank holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.fx

from tsc.graph import JoinedType, Program, layout_of, node_type, op_of, operands, target_of
from tsc.mesh import Mesh
from tspasses.joined_weights import WeightKey, is_private, join, tensor_of

Group = tuple[int, ...]
"""Names which weights may be joined: those that have the same one."""


@dataclass(frozen=True, slots=True)
class FuseLinears:
    """groups: of weights, where several programs must join the same; None: whatever reads one value."""

    groups: Mapping[WeightKey, Group] | None = None
    name: ClassVar[str] = "fuse-linears"

    def agree(self, programs: Sequence[Program]) -> FuseLinears:
        """Join what one value is multiplied by in each of an entry's programs."""
        return replace(self, groups=common_groups(programs))

    def run(self, program: Program) -> Program:
        for name, graph in program.graphs.items():
            for x, linears in _readers(graph).items():
                joined: dict[tuple[Group, str, int], list[torch.fx.Node]] = {}
                for node in linears:
                    _, weight, *bias = operands(node)
                    group = () if self.groups is None else self.groups[program.entry, name, tensor_of(weight)]
                    joined.setdefault((group, layout_of(weight), len(bias)), []).append(node)
                for several in joined.values():
                    if len(several) > 1:
                        _fuse(graph, program.mesh, x, several)
            graph.lint()
        return program


def common_groups(programs: Sequence[Program]) -> Mapping[WeightKey, Group]:
    """The weights that one value is multiplied by in each of an entry's programs, which then store the same joined ones."""
    found: dict[WeightKey, list[int]] = {}
    seen: Counter[WeightKey] = Counter()
    entries = Counter(program.entry for program in programs)
    number = 0
    for program in programs:
        for name, graph in program.graphs.items():
            for linears in _readers(graph).values():
                number += 1
                for node in linears:
                    key = program.entry, name, tensor_of(operands(node)[1])
                    found.setdefault(key, []).append(number)
                    seen[key] += 1
    # A weight that is not free to be joined in one of them is alone in all.
    return {key: tuple(numbers) if seen[key] == entries[key[0]] else (-i,) for i, (key, numbers) in enumerate(found.items(), 1)}


def _readers(graph: torch.fx.Graph) -> dict[torch.fx.Node, list[torch.fx.Node]]:
    """By value, the matmuls that read it and may be joined."""
    readers: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in graph.nodes:
        is_linear = node.op == "call_function" and op_of(node) == "linear"
        if is_linear and all(map(is_private, operands(node)[1:])) and not _is_result(node):
            readers.setdefault(operands(node)[0], []).append(node)
    return readers


def _is_result(node: torch.fx.Node) -> bool:
    return any(u.op == "output" or (u.op == "call_function" and op_of(u) == "split" and _is_result(u)) for u in node.users)


def _fuse(graph: torch.fx.Graph, mesh: Mesh, x: torch.fx.Node, linears: list[torch.fx.Node]) -> None:
    weights = list(zip(*(operands(n)[1:] for n in linears), strict=True))  # and biases, where there are
    stored = [join(graph, several, layout_of(several[0])) for several in weights]
    results = [node_type(n) for n in linears]
    dim = len(results[0].shape.groups) - 1
    with graph.inserting_before(linears[0]):  # the joint matmul stands where the first one stood
        joint = graph.create_node("call_function", target_of("linear"), (x, *stored), {}, name="_".join(n.name for n in linears))
        joint.meta.update(type=JoinedType(tuple(results), dim), span=linears[0].meta["span"])
        start = 0
        for node, result in zip(linears, results, strict=True):
            length = int(result.local(mesh)[dim])
            view = graph.create_node(
                "call_function", target_of("narrow"), (joint,), {"start": start, "length": length}, name=f"{node.name}_part"
            )
            view.meta.update(type=replace(result), span=node.meta["span"])
            node.replace_all_uses_with(view)
            start += length
    for node in (*linears, *(old for several in weights for old in several)):
        graph.erase_node(node)
