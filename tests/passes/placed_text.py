"""A placed model as text: each module's operations with their types, and every transition where it happens with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from tsc.mesh import Mesh
from tspasses.placed import PlacedInstance, PlacedModel, Transition


def print_placed(placed: PlacedModel) -> str:
    return "\n".join("".join(f"{line}\n" for line in _instance(placed.mesh, i)) for i in placed.instances.values())


def _instance(mesh: Mesh, placed: PlacedInstance) -> Iterator[str]:
    instance = placed.instance
    names = _names(placed)
    for index, value in enumerate(instance.values):
        if value.kind != "result":
            yield f"{value.kind} {names[index]}: {value.shape.text(mesh, placed.placements[index])}"
    yield f"module {instance.name}"
    for index, operation in enumerate(instance.operations):
        yield from (_transition(mesh, placed, names, t) for t in placed.transitions if t.operation == index)
        callee = operation.attributes["target"].instance if operation.op == "call" else operation.op
        operands = ", ".join(
            f"{names[v]}: {instance.values[v].shape.text(mesh, p)}" for v, p in zip(operation.operands, placed.needs[index], strict=True)
        )
        result = operation.result
        yield f"  {names[result]} = {callee}({operands}) -> {instance.values[result].shape.text(mesh, placed.placements[result])}"
    yield from (_transition(mesh, placed, names, t) for t in placed.transitions if t.operation == len(instance.operations))
    yield f"  return {names[instance.result]}: {instance.values[instance.result].shape.text(mesh, placed.result)}"


def _transition(mesh: Mesh, placed: PlacedInstance, names: list[str], transition: Transition) -> str:
    shape = placed.instance.values[transition.value].shape
    before, after = shape.text(mesh, transition.source), shape.text(mesh, transition.target)
    how = ", ".join(f"{m.kind} over {mesh.name_of(m.axes)}" for m in transition.moves)
    return f"  {names[transition.value]}: {before} -> {after} by {how}; {transition.reason}"


def _names(placed: PlacedInstance) -> list[str]:
    """Names of values; those that several have are numbered."""
    found: list[str] = []
    for value in placed.instance.values:
        count = sum(n == value.name or n.startswith(f"{value.name}#") for n in found)
        found.append(f"{value.name}#{count + 1}" if count else value.name)
    return found
