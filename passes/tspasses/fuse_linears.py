"""Join matmuls that read the same value into one over joined weights: q, k and v; gate and up.

Assumes: weights are checkpoint tensors, so that joining them costs nothing at run time.
Guarantees: at most one matmul with private weights reads any value; each former result is a view (`narrow`) of the joint one.
Does not: join a weight that anything else reads (a tied embedding), a matmul that is the graph's result (it has a place of its own,
which a view has not), or change what a rank holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch.fx

from tsc.graph import Input, JoinedType, NodeType, Program, node_type, op_of, operands, target_of
from tsc.mesh import Mesh


@dataclass(frozen=True, slots=True)
class FuseLinears:
    name: ClassVar[str] = "fuse-linears"

    def run(self, program: Program) -> Program:
        for graph in program.graphs.values():
            groups: dict[torch.fx.Node, list[torch.fx.Node]] = {}
            for node in graph.nodes:
                is_linear = node.op == "call_function" and op_of(node) == "linear" and len(operands(node)) == 2
                if is_linear and _is_private(operands(node)[1]) and not _is_result(node):
                    groups.setdefault(operands(node)[0], []).append(node)
            for x, linears in groups.items():
                if len(linears) > 1:
                    _fuse(graph, program.mesh, x, linears)
            graph.lint()
        return program


def _is_result(node: torch.fx.Node) -> bool:
    return any(u.op == "output" or (u.op == "call_function" and op_of(u) == "split" and _is_result(u)) for u in node.users)


def _is_private(weight: torch.fx.Node) -> bool:
    return weight.op == "placeholder" and len(weight.users) == 1 and isinstance(weight.meta["type"], NodeType)


def _fuse(graph: torch.fx.Graph, mesh: Mesh, x: torch.fx.Node, linears: list[torch.fx.Node]) -> None:
    weights = [operands(n)[1] for n in linears]
    # placeholders keep their order, and the joint matmul stands where the first one stood
    with graph.inserting_before(weights[0]):
        name = "_".join(w.name for w in weights)
        weight = graph.create_node("placeholder", name, (), {}, name=name)
        weight.target = weight.name
    parts = tuple(p for w in weights for p in w.meta["input"].parts)
    weight.meta.update(type=JoinedType(tuple(p.type for p in parts), 0), span=weights[0].meta["span"], input=Input("weight", parts=parts))
    results = [node_type(n) for n in linears]
    dim = len(results[0].shape.groups) - 1
    with graph.inserting_before(linears[0]):
        joint = graph.create_node("call_function", target_of("linear"), (x, weight), {}, name="_".join(n.name for n in linears))
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
    for node, old in zip(linears, weights, strict=True):
        graph.erase_node(node)
        graph.erase_node(old)
