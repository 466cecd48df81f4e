"""Why a module cannot be placed, in an author's words; every fix is found by trying it, and offered only if the search then ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from tsc.diagnostics import Diagnostic, Note
from tsc.program import Instance, Operation, TypedModel, Value
from tsc.signatures import Signature
from tsc.types import Placement
from tspasses.placed import PlacedInstance, Transition
from tspasses.search import Search, State, Stuck
from tspasses.transitions import COLLECTIVES


def explain(stuck: Stuck) -> Diagnostic:
    """What a search that got stuck says: a denied collective, a weight that would move, a pin, a boundary, or no rule at all."""
    search, state, index = stuck.search, stuck.state, stuck.index
    if index == len(search.instance.operations):
        return _result(search)
    operation = search.instance.operations[index]
    values = [search.instance.values[v] for v in operation.operands]
    facts = tuple(Note(_describe(search, v, state.exists[i][0]), v.span) for i, v in zip(operation.operands, values, strict=True))
    if denied := _denied(search):
        what = "the call" if operation.op == "call" else f"`{operation.name}`"
        return Diagnostic("TS0305", f"{what} needs a collective that is denied ({denied})", operation.span, notes=facts)
    for i, value in zip(operation.operands, values, strict=True):
        if value.kind == "weight":
            needed = _needed(_again(search, movable=frozenset({i}), instance=_apart(search.instance, i)), state, index, operation, i)
            if needed is not None:
                return _weight_moves(search, operation, value, i, needed)
    if operation.op == "pin":
        pinned = search.instance.values[operation.result]
        now = values[0].shape.text(search.mesh, state.exists[operation.operands[0]][0])
        wanted = pinned.shape.text(search.mesh, pinned.placement or search.replicated)
        text = f"`{pinned.name}` is {now}, and cannot become {wanted}"
        return Diagnostic("TS0303", text, operation.span, notes=facts[:1], fixes=_without_pin(search, index, operation))
    text = f"`{operation.name}` has no rule for these placements, and no legal transition leads to one"
    return Diagnostic("TS0301", text, operation.span, notes=facts)


def strict_violation(search: Search, placed: PlacedInstance, places: Callable[[TypedModel], bool]) -> Diagnostic | None:
    """The first collective of a strict module. `places` tries a changed model."""
    for transition in placed.transitions:
        kinds = [m.kind for m in transition.moves if m.kind in COLLECTIVES]
        if kinds:
            value = search.instance.values[transition.value]
            now = value.shape.text(search.mesh, transition.source)
            needs = f"`{value.name}` {now} would need {' and '.join(kinds)}: {transition.reason}"
            notes = () if value.span == transition.span else (Note("the value comes from here", value.span),)
            fixes = _declared_as(search, transition, places)
            return Diagnostic("TS0304", f"`{search.instance.module}` is strict, and {needs}", transition.span, notes=notes, fixes=fixes)
    return None


def _result(search: Search) -> Diagnostic:
    result = search.instance.values[search.instance.result]
    notes = (Note("the value comes from here", result.span),)
    if denied := _denied(search):
        message = f"what `{search.instance.module}` returns needs a collective that is denied ({denied})"
        return Diagnostic("TS0305", message, search.instance.result_span, notes=notes)
    declared = result.shape.text(search.mesh, search.instance.result_placement)
    message = f"`{search.instance.module}` declares {declared}, and its result cannot become that"
    return Diagnostic("TS0303", message, search.instance.result_span, notes=notes)


def _weight_moves(search: Search, operation: Operation, weight: Value, index: int, needed: Placement) -> Diagnostic:
    assert weight.placement is not None
    declared = weight.shape.text(search.mesh, weight.placement)
    wanted = weight.shape.text(search.mesh, needed)
    changes = [(a, p, q) for a, p, q in zip(search.mesh.active, weight.placement, needed, strict=True) if p != q]
    gathers = all(isinstance(p, int) and q is None for _, p, q in changes)
    how = "add up" if all(p == "sum" and q is None for _, p, q in changes) else "gather" if gathers else "move"
    message = f"weight `{weight.name}` is {declared}, and `{operation.name}` would have to {how} it to {wanted} at run time"
    values = list(search.instance.values)
    values[index] = replace(weight, placement=needed)
    fixes: tuple[str, ...] = ()
    if _ends(_again(search, instance=replace(search.instance, values=values))) is not None:
        factor = math.prod(a.size or 0 for a, _, _ in changes)
        price = f"; {factor} x the bytes of this weight on each rank, no collective" if gathers and factor else ""
        fixes = (f"declare `weight {weight.name}: {wanted}` (checked{price})",)
    return Diagnostic("TS0302", message, operation.span, notes=(Note("the weight is declared here", weight.span),), fixes=fixes)


def _apart(instance: Instance, weight: int) -> Instance:
    """With a dimension for each factor of a weight, so that each could be moved."""
    values = list(instance.values)
    values[weight] = replace(values[weight], shape=values[weight].shape.ungrouped())
    return replace(instance, values=values)


def _needed(search: Search, state: State, index: int, operation: Operation, weight: int) -> Placement | None:
    """What the operation would have the weight as, on the way on that changes it on the fewest axes; of equals the cheapest."""
    declared = search.instance.values[weight].placement or search.replicated
    ways = []
    for way in search.extend(state, index, operation, search.rules(operation)):
        assert way.choice is not None
        need = next(n for v, n in zip(operation.operands, way.choice.operands, strict=True) if v == weight)
        ways.append((sum(a != b for a, b in zip(need, declared, strict=True)), way.cost, need))
    return min(ways, key=lambda way: way[:2])[2] if ways else None


def _without_pin(search: Search, index: int, pin: Operation) -> tuple[str, ...]:
    value = search.instance.values[pin.result]
    labels = tuple(f"x{i}" for i in range(len(value.shape.factors)))
    free = replace(pin, op="as it is", signature=Signature((labels,), labels, linear=((0,),)))
    operations = [free if i == index else o for i, o in enumerate(search.instance.operations)]
    placed = _ends(_again(search, instance=replace(search.instance, operations=operations)))
    if placed is None:
        return ()
    return (f"drop the type: `{value.name}` is then {value.shape.text(search.mesh, placed.placements[pin.result])} (checked)",)


def _declared_as(search: Search, transition: Transition, places: Callable[[TypedModel], bool]) -> tuple[str, ...]:
    """The fix that leaves a transition at the boundary to the callers, if the whole model then places."""
    instance = search.instance
    if transition.operation < len(instance.operations) or search.is_entry:
        return ()
    changed = replace(instance, result_placement=transition.source)
    if not places(replace(search.typed, instances={**search.typed.instances, instance.name: changed})):
        return ()
    result = instance.values[instance.result].shape.text(search.mesh, transition.source)
    return (f"declare `{instance.module}(...) -> {result}` (checked): its callers then decide where that is resolved",)


def _denied(search: Search) -> str:
    """The denied collectives, when they alone stand in the way."""
    denied = search.options.deny
    if not denied or _ends(_again(search, options=replace(search.options, deny=frozenset()))) is None:
        return ""
    return ", ".join(sorted(denied))


def _again(search: Search, **changes: object) -> Search:
    """A search like this one but for `instance`, `options` or `movable`."""
    arguments = {"instance": search.instance, "options": search.options, "movable": search.movable, **changes}
    return Search(search.typed, is_entry=search.is_entry, **arguments)  # type: ignore[arg-type]


def _ends(search: Search) -> PlacedInstance | None:
    try:
        return search.run()
    except Stuck:
        return None


def _describe(search: Search, value: Value, placement: Placement) -> str:
    return f"`{value.name}` is {value.shape.text(search.mesh, placement)}"
