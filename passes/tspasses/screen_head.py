"""Give the model's head an 8-bit copy of its weight, which spares a greedy sampler from reading most of it.

Assumes: weights are checkpoint tensors. Runs before layouts are chosen: the head is then read by rows.
Guarantees: who keeps all logits gets the very same ones; the others get those that count, bit for bit.
Does not: anything where the target has no kernel that makes use of it, for a vocabulary so small that it is not worth it, or for a
head that is quantized itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch.fx

from tsc.graph import Input, NodeType, Program, op_of, operands, output_node, target_of, type_of
from tsc.types import Factor, Shape
from tskernels.layouts import SCREEN
from tskernels.registry import ROWS, Call, Operand, explain
from tskernels.target import Target

FEWEST_OUTPUTS = 16_384
"""Of a rank's part of the head: with fewer, other weights are most of the bytes."""


@dataclass(frozen=True, slots=True)
class ScreenHead:
    target: Target
    name: ClassVar[str] = "screen-head"

    def run(self, program: Program) -> Program:
        graph = program.graphs[program.entry]
        head = _head(graph)
        if head is not None and self._is_worth_it(program, head):
            _screen(program, graph, head)
            graph.lint()
        return program

    def _is_worth_it(self, program: Program, head: torch.fx.Node) -> bool:
        w = operands(head)[1]
        outputs, inner = (int(n) for n in type_of(w).local(program.mesh))
        dtype = type_of(w).dtype
        matrix = Operand(dtype, (outputs, inner))
        call = Call("ts::screened_linear", (Operand(dtype, (None, inner)), matrix, replace(matrix, layout=SCREEN), Operand("i32", (None,))))
        best = explain(call, self.target)[0]
        return outputs >= FEWEST_OUTPUTS and best.reason is None and best.kernel.name not in ("torch", "reference")


def _head(graph: torch.fx.Graph) -> torch.fx.Node | None:
    """The product that makes the logits, whole or one rank's."""
    node = output_node(graph)
    while node.op == "call_function" and op_of(node) in ("all_gather", "split"):
        node = operands(node)[0]
    is_product = node.op == "call_function" and op_of(node) == "linear" and len(operands(node)) == 2
    if not is_product or node.meta["type"].shape.factors[0].name != "S":
        return None
    w = operands(node)[1]
    if w.op != "placeholder" or w.meta["input"].layout != ROWS:
        return None
    return node if len(w.meta["input"].parts) == 1 and isinstance(w.meta["type"], NodeType) else None


def _screen(program: Program, graph: torch.fx.Graph, head: torch.fx.Node) -> None:
    x, w = operands(head)
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    given: Input = w.meta["input"]
    keep = NodeType(Shape("i32", (Factor("S", None),), (1,)), (None,) * len(program.mesh.active))
    made = []
    for name, kind, type_ in (
        (f"{w.name}_screen", replace(given, layout=SCREEN), w.meta["type"]),
        ("keep", Input("step", name="keep"), keep),
    ):
        with graph.inserting_after(last):
            last = graph.create_node("placeholder", name, (), {}, name=name)
        last.target = last.name
        last.meta.update(type=type_, span=head.meta["span"], input=kind)
        made.append(last)
    head.target = target_of("screened_linear")
    head.args = (x, w, *made)
