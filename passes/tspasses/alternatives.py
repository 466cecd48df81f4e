"""What else could have been done where the plan has a collective: the module placed again without it, and what that costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tspasses.placed import PlacedModel
from tspasses.plan import PlanItem, plan_of
from tspasses.search import Search, Stuck

MOST = 3


@dataclass(frozen=True, slots=True)
class Alternative:
    """added, removed: collectives of the module beside those of the plan. seconds, bytes_per_token: more than the plan, a run; its ops'
    time is counted too."""

    added: tuple[PlanItem, ...]
    removed: tuple[PlanItem, ...]
    seconds: float
    bytes_per_token: int


def alternatives(placed: PlacedModel, module: str, value: int, kind: str) -> Sequence[Alternative]:
    """The cheapest plan of the module that never moves `value` by `kind`, then without what that one does instead, and so on."""
    instance = placed.instances[module].instance
    forbidden = {(value, kind)}
    found: list[Alternative] = []
    while len(found) < MOST:
        search = Search(placed.typed, instance, placed.options, is_entry=module == placed.typed.entry, forbidden=frozenset(forbidden))
        try:
            other = search.run()
        except Stuck:
            break
        changed = replace(placed, instances={**placed.instances, module: other})
        more = other.seconds - placed.instances[module].seconds
        found.append(_beside(_items(placed, module), _items(changed, module), more))
        moves = {(value, m.kind) for t in other.transitions if t.value == value for m in t.moves}
        if not moves - forbidden:  # nothing is done to the value any more: no further way to forbid
            break
        forbidden |= moves
    return found


def _items(placed: PlacedModel, module: str) -> list[PlanItem]:
    """What a run of the module does, wherever it does it."""
    return [replace(i, id="", span="", reason="") for i in plan_of(placed).items if i.module == module]


def _beside(ours: Sequence[PlanItem], others: Sequence[PlanItem], seconds: float) -> Alternative:
    added, removed = Counter(others) - Counter(ours), Counter(ours) - Counter(others)

    def size(items: Counter[PlanItem]) -> int:
        return sum(i.bytes_per_row * n for i, n in items.items() if i.row == "T")

    return Alternative(tuple(added.elements()), tuple(removed.elements()), seconds, size(added) - size(removed))
