"""Boundaries that would make a step cheaper. A boundary is the author's: nothing is changed, only found out and told.

Each parameter and result of a module that the entry reaches is tried with every other placement on each axis, or a product of
axes, that its values can have: whole, pending a sum (results only), or split on one factor. The whole model is placed again; what
cannot be placed is no suggestion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tsc.diagnostics import CompileError
from tsc.program import Instance, TypedModel
from tsc.spans import Span
from tsc.types import SPLITTABLE, AxisPlacement, Placement, Shape
from tspasses.place import place
from tspasses.placed import PlacedModel
from tspasses.plan import plan_of
from tspasses.transitions import divides


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Declaring `what` of `module` as `then` instead of `now` would take `seconds` less in a step; bytes: less payload, a token."""

    module: str
    what: str
    now: str
    then: str
    seconds: float
    bytes_per_token: int
    span: Span


def suggestions(placed: PlacedModel) -> Sequence[Suggestion]:
    """Those that save time, the best first; of equals in source order."""
    now = plan_of(placed)
    found = []
    for changed, make in _changes(placed.typed):
        try:
            then = plan_of(place(changed, placed.options))
        except CompileError:
            continue
        if then.step_seconds < now.step_seconds * (1 - 1e-9):
            found.append(make(now.step_seconds - then.step_seconds, now.bytes_per_token - then.bytes_per_token))
    return sorted(found, key=lambda s: (-s.seconds, s.span.line))


@dataclass(frozen=True, slots=True)
class _Make:
    """A suggestion but for what it saves."""

    module: str
    what: str
    now: str
    then: str
    span: Span

    def __call__(self, seconds: float, size: int) -> Suggestion:
        return Suggestion(self.module, self.what, self.now, self.then, seconds, size, self.span)


def _changes(typed: TypedModel) -> Iterator[tuple[TypedModel, _Make]]:
    """Each model with one boundary changed: a module's instances together, since they are one in the source."""
    modules = dict.fromkeys(i.module for n, i in typed.instances.items() if n != typed.entry)
    for module in modules:
        instances = [i for i in typed.instances.values() if i.module == module]
        first = instances[0]
        for number, index in enumerate(first.parameters):
            value = first.values[index]
            if value.shape.dtype == "i32" or value.placement is None:
                continue
            for placement in _others(typed, value.shape, value.placement, partial=False):
                changed = {i.name: _with_parameter(i, number, placement) for i in instances}
                texts = value.shape.text(typed.mesh, value.placement), value.shape.text(typed.mesh, placement)
                make = _Make(module, f"parameter `{value.name}`", *texts, value.span)
                yield replace(typed, instances={**typed.instances, **changed}), make
        shape = first.values[first.result].shape
        for placement in _others(typed, shape, first.result_placement, partial=True):
            changed = {i.name: replace(i, result_placement=placement) for i in instances}
            texts = shape.text(typed.mesh, first.result_placement), shape.text(typed.mesh, placement)
            assert first.result_span is not None
            yield replace(typed, instances={**typed.instances, **changed}), _Make(module, "result", *texts, first.result_span)


def _with_parameter(instance: Instance, number: int, placement: Placement) -> Instance:
    values = list(instance.values)
    index = instance.parameters[number]
    values[index] = replace(values[index], placement=placement)
    return replace(instance, values=values)


def _others(typed: TypedModel, shape: Shape, now: Placement, *, partial: bool) -> Iterator[Placement]:
    """Other placements, all axes that are alike now changed alike."""
    splits = [i for i, f in enumerate(shape.factors) if not f.is_dynamic or f.name in SPLITTABLE]
    places: list[AxisPlacement] = [None, *(["sum"] if partial else []), *splits]
    for old in dict.fromkeys(now):
        for new in places:
            placement = tuple(new if p == old else p for p in now)
            if new != old and divides(shape, typed.mesh, placement):
                yield placement
