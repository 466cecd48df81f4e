"""Runs a program's graphs as they stand, node by node through `torch.ops.ts`: what every pass must leave the same.

Does not: use the kernels that were selected, or the memory plan; in f64, whatever the model's element type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.fx
from torch import Tensor

from tsc.graph import CallBinding, Input, NodeType, Program, node_type, operands, output_node
from tsc.simulation.inputs import PAGE_SIZE, PAGES
from tskernels.communicator import MeshCommunicator


@dataclass
class Interpreter:
    """One rank. Caches live as long as it does: `pages` pages of `page_size` tokens for each call of a graph that has one.

    observe: called with name, type and value of what each module returns, inlined ones too, and of the entry's result."""

    program: Program
    mesh: MeshCommunicator
    weights: Mapping[str, Tensor]
    pages: int = PAGES
    page_size: int = PAGE_SIZE
    caches: dict[str, Tensor] = field(default_factory=dict)
    observe: Callable[[str, NodeType, Tensor], None] = lambda name, kind, value: None

    def step(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._run(self.program.entry, "", dict(inputs), "")

    def _run(self, name: str, prefix: str, bound: Mapping[str, Any], path: str) -> Tensor:
        """`bound`: values of the inputs that the caller gives, by name."""
        graph = self.program.graphs[name]
        values: dict[torch.fx.Node, Any] = {}
        for node in graph.nodes:
            match node.op:
                case "placeholder":
                    values[node] = self._input(node, prefix, bound, path)
                case "call_function":
                    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
                    values[node] = node.target(*args, **kwargs)
                    self._check(node, values[node])
                    for name in node.meta.get("returned", ()):
                        self.observe(f"{path}/{name}", node_type(node), values[node])
                case "call_module":
                    call: CallBinding = node.meta["call"]
                    names = [n.name for n in self.program.graphs[call.graph].nodes if _is_passed(n)]
                    passed = dict(zip(names, (values[n] for n in operands(node)), strict=True))
                    values[node] = self._run(call.graph, call.prefix, passed, f"{path}/{node.name}")
                    self.observe(f"{path}/{node.name}", node_type(node), values[node])
        last = output_node(graph)
        result: Tensor = values[last]
        if not path:
            self.observe(self.program.entry, node_type(last), result)
        return result

    def _input(self, node: torch.fx.Node, prefix: str, bound: Mapping[str, Any], path: str) -> Any:
        kind: Input = node.meta["input"]
        match kind.kind:
            case "weight":
                return self.weights[kind.tensor(prefix)]
            case "cache":
                shape = [int(d) for d in node_type(node).local(self.program.mesh)[1:]]
                new = torch.full((self.pages, self.page_size, *shape), torch.nan, dtype=torch.float64)
                return self.caches.setdefault(f"{path}/{node.name}", new)
            case "state":
                shape = [int(d) for d in node_type(node).local(self.program.mesh)[1:]]
                return self.caches.setdefault(f"{path}/{node.name}", torch.full((self.pages, *shape), torch.nan, dtype=torch.float64))
            case "coordinate" if node.name not in bound:
                return self.mesh.coordinate("*".join(kind.axes))
            case _:
                return bound[node.name]

    def _check(self, node: torch.fx.Node, value: Tensor) -> None:
        """The value has the shape that the node's type says."""
        wanted = node.meta["type"].local(self.program.mesh)
        if len(wanted) == value.dim() - 1:
            wanted = (wanted[0], "page_size", *wanted[1:])  # a cache
        found = tuple(value.shape)
        agrees = len(wanted) == len(found) and all(isinstance(w, str) or w == f for w, f in zip(wanted, found, strict=True))
        assert agrees, f"%{node.name} is {list(found)}, and its type says {list(wanted)}"


def _is_passed(node: torch.fx.Node) -> bool:
    return node.op == "placeholder" and node.meta["input"].kind in ("value", "step", "coordinate")
