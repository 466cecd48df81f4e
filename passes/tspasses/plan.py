"""The collective plan: every transition that was inserted, why, how often, and what it moves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, replace
from typing import Any

from tsc.program import CallTarget, runs_of
from tspasses.cost import DTYPE_BYTES, NOMINAL, payload, seconds
from tspasses.placed import PlacedModel, Transition
from tspasses.transitions import COLLECTIVES, moved


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One collective of a module. id: `C` and a number, of a drafter `D`. bytes_per_row: payload per token (`row` T) or per sequence (S);
    times: a step runs it that often; seconds: predicted, once, at the step size of the plan."""

    id: str
    module: str
    kind: str
    axis: str
    ranks: int
    value: str
    before: str
    after: str
    row: str
    bytes_per_row: int
    times: int
    seconds: float
    span: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Of an entry. drafter: of the entry that guesses one token further, which runs after it where the checkpoint has its weights; those
    that the first entry stores, too, do not count there."""

    mesh: dict[str, int]
    dtype: str
    topology: str
    tokens: int
    sequences: int
    items: tuple[PlanItem, ...]
    cache_bytes_per_token: int
    cache_copies: int
    state_bytes: int  # that a sequence takes on each rank, whatever its length
    weight_bytes: int  # that each rank stores
    weight_bytes_repeated: int  # of those, what other ranks store too, less one copy's share of it
    step_seconds: float  # predicted, of a step: collectives and ops, but for what attention reads of caches
    drafter: Plan | None = None

    @property
    def seconds(self) -> float:
        """Predicted, of a step's collectives."""
        return sum(i.seconds * i.times for i in self.items)

    @property
    def bytes_per_token(self) -> int:
        """Payload of a step's collectives over tokens."""
        return sum(i.bytes_per_row * i.times for i in self.items if i.row == "T")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_of(placed: PlacedModel, drafts: PlacedModel | None = None) -> Plan:
    """List the collectives of every instance, entry first and then in order of first call. drafts: the drafter of the entry."""
    plan = _plan(placed, "C", frozenset())
    return plan if drafts is None else replace(plan, drafter=_plan(drafts, "D", _weights(placed).keys()))


def _plan(placed: PlacedModel, letter: str, stored: Set[str]) -> Plan:
    """stored: the tensors that are there already."""
    times = _times(placed)
    items: list[PlanItem] = []
    order = [placed.typed.entry, *(n for n in reversed(list(placed.instances)) if n != placed.typed.entry)]
    for name in order:
        for transition in placed.instances[name].transitions:
            items.extend(_items(placed, name, transition, times[name], f"{letter}{{}}", len(items)))
    options = placed.options
    cache_bytes, state_bytes, copies = _cache(placed, times)
    weights = [size for tensor, size in _weights(placed).items() if tensor not in stored]
    weight_bytes = sum(size.local for size in weights)
    return Plan(
        {a.name: a.known_size for a in placed.mesh.axes},
        options.dtype,
        options.topology.name,
        options.tokens,
        options.sequences,
        tuple(items),
        cache_bytes,
        copies,
        state_bytes,
        weight_bytes,
        weight_bytes - sum(size.whole for size in weights) // placed.mesh.ranks,
        sum(instance.seconds * times[name] for name, instance in placed.instances.items()),
    )


def _times(placed: PlacedModel) -> Counter[str]:
    """How often a step runs each instance."""
    times: Counter[str] = Counter({placed.typed.entry: 1})
    for name in reversed(list(placed.typed.instances)):  # callers before callees
        for operation in placed.typed.instances[name].operations:
            if operation.op == "call":
                target: CallTarget = operation.attributes["target"]
                times[target.instance] += times[name]
    return times


def _items(placed: PlacedModel, name: str, transition: Transition, times: int, id: str, count: int) -> list[PlanItem]:
    value = placed.instances[name].instance.values[transition.value]
    placement = transition.source
    options, mesh = placed.options, placed.mesh
    found: list[PlanItem] = []
    for move in transition.moves:
        before = placement
        placement = moved(mesh, placement, move)
        if move.kind not in COLLECTIVES:
            continue
        size = payload(value.shape, mesh, before, move, options.dtype)
        ranks = mesh.size_of(move.axes)
        rows = {"T": options.tokens, "S": options.sequences, "": 1}[size.row]
        item = PlanItem(
            id=id.format(count + len(found) + 1),
            module=name,
            kind=move.kind,
            axis=mesh.name_of(move.axes),
            ranks=ranks,
            value=value.name,
            before=value.shape.text(mesh, before, options.dtype),
            after=value.shape.text(mesh, placement, options.dtype),
            row=size.row,
            bytes_per_row=size.per_row,
            times=times,
            seconds=seconds(move, ranks, size.per_row * rows, options.topology),
            span=str(transition.span),
            reason=transition.reason,
        )
        found.append(item)
    return found


@dataclass(frozen=True, slots=True)
class _Size:
    """Bytes of a weight: all of it, and what a rank has."""

    whole: int
    local: int


def _weights(placed: PlacedModel) -> Mapping[str, _Size]:
    """By the checkpoint's names of the tensors."""
    found: dict[str, _Size] = {}
    for prefix, instance in runs_of(placed.typed):
        for weight in instance.weights:
            if weight.tied is None:
                shape, placement = instance.values[weight.value].shape, placed.instances[instance.name].placements[weight.value]
                size = math.prod(f.size or NOMINAL for f in shape.factors) * DTYPE_BYTES[shape.dtype or placed.options.dtype]
                split = placed.mesh.size_of([a.name for a, p in zip(placed.mesh.active, placement, strict=True) if p is not None])
                found[prefix + weight.tensor] = _Size(size, size // split)
    return found


def _cache(placed: PlacedModel, times: Counter[str]) -> tuple[int, int, int]:
    """Bytes of cache that a token takes on one rank, and of states that a sequence takes, on average over ranks that keep sequences of
    their own; and on how many ranks of the mesh each byte of them is repeated at most."""
    totals, copies = Counter[str](), 1
    for name, instance in placed.instances.items():
        for cache in instance.instance.caches:
            shape, placement = instance.instance.values[cache.value].shape, instance.placements[cache.value]
            elements = math.prod(f.size or NOMINAL for f in shape.factors[1:])  # of a page's row, or of a state
            split = placed.mesh.size_of([a.name for a, p in zip(placed.mesh.active, placement, strict=True) if p is not None])
            totals[cache.kind] += times[name] * elements * DTYPE_BYTES[shape.dtype or placed.options.dtype] // split
            copies = max(copies, placed.mesh.ranks // split)
    return totals["paged"], totals["state"], copies
