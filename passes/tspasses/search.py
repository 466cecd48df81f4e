"""The search for each value's placement and the transitions between them: exact search over a module, its boundary fixed.

State of the search: which placements of each live value exist so far. Each op extends every state by every rule it has, at the
price of the transitions its operands need (`routes.py` finds the cheapest); states that agree on the live values keep the cheapest.
This is exact for any dataflow, since nothing but the live values' placements bears on what follows. A first sweep with a few states gives
a plan; the second drops what cannot end cheaper than that.

Does not: change a declared boundary, move a weight or a cache, or look into a callee: calls are ops with one rule, their contract.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tsc.program import CallTarget, Instance, Operation, TypedModel, stored_values
from tsc.signatures import rules
from tsc.spans import Span
from tsc.types import DYNAMIC, PAGES, SPLITTABLE, Placement, Shape
from tspasses.cost import Machine, copy_seconds, op_seconds, payload, seconds
from tspasses.placed import Options, PlacedInstance, Transition
from tspasses.routes import NOTHING, Cost, plus, route
from tspasses.transitions import COLLECTIVES, Move, divides, moved

BEAM = 8
"""States that the first sweep follows."""


class Stuck(Exception):
    """No state survives operation `index` of the search's instance (their number: the return); `state` was the cheapest before it."""

    def __init__(self, search: Search, state: State, index: int) -> None:
        super().__init__(index)
        self.search = search
        self.state = state
        self.index = index


@dataclass(frozen=True, slots=True)
class Choice:
    """What one step of the search decided, linked to the step before it."""

    previous: Choice | None
    operands: tuple[Placement, ...]
    result: Placement
    transitions: tuple[Transition, ...]


@dataclass(frozen=True, slots=True)
class State:
    cost: Cost
    exists: Mapping[int, tuple[Placement, ...]]
    choice: Choice | None


class Search:
    def __init__(
        self,
        typed: TypedModel,
        instance: Instance,
        options: Options,
        *,
        is_entry: bool,
        movable: frozenset[int] = frozenset(),
        forbidden: frozenset[tuple[int, str]] = frozenset(),
    ) -> None:
        self.typed = typed
        self.mesh = typed.mesh
        self.instance = instance
        self.options = options
        self.is_entry = is_entry
        self.movable = movable  # weights that may move, to find out what a plan would need
        self.forbidden = forbidden  # values that a kind of move may not be made on, to find out what else could be done
        self.replicated: Placement = (None,) * len(self.mesh.active)
        self.token_axes = self._token_axes()
        self.stored = stored_values(instance)
        self.rows = {"T": options.tokens, "S": options.sequences, "": 1}
        links = options.topology
        self.machine = Machine(links.memory_bytes_per_second, links.flops, options.dtype)
        self._op_costs: dict[tuple[int, tuple[Placement, ...], Placement], Cost] = {}
        self._prices: dict[tuple[int, tuple[Placement, ...], Placement], Cost | None] = {}
        self._routes: dict[tuple[int, Placement, Placement], tuple[tuple[Move, ...], Cost] | None] = {}
        self.last_use: dict[int, int] = {instance.result: len(instance.operations)}
        for index, operation in enumerate(instance.operations):
            for operand in operation.operands:
                self.last_use[operand] = max(self.last_use.get(operand, -1), index)

    def run(self) -> PlacedInstance:
        """The cheapest placement. Raises Stuck where none is left."""
        try:
            bound = self._sweep(BEAM, None).cost
        except Stuck:  # of the few that were followed: the whole search may still get through, or tells why not
            bound = None
        return self._collect(self._sweep(None, bound))

    def _sweep(self, width: int | None, bound: Cost | None) -> State:
        """Go through the operations once, with every state or the `width` cheapest; without those that cannot end within `bound`."""
        declared = {i: (v.placement,) for i, v in enumerate(self.instance.values) if v.placement is not None and v.kind != "result"}
        states = [State(NOTHING, declared, None)]
        for index, operation in enumerate(self.instance.operations):
            options = self.rules(operation)
            extended = (s for state in states for s in self.extend(state, index, operation, options))
            if bound is not None:
                left = self._least[index + 1]
                extended = (s for s in extended if plus(s.cost, left) <= bound)
            following = self._merge(extended)
            if not following:
                raise Stuck(self, min(states, key=lambda s: s.cost), index)
            states = following[:width]
        finished = self._merge(s for state in states for s in self._finish(state))
        if not finished:
            raise Stuck(self, min(states, key=lambda s: s.cost), len(self.instance.operations))
        return min(finished, key=lambda s: s.cost)

    @cached_property
    def _least(self) -> list[Cost]:
        """What the operations from each on cost at least, whatever the placements."""
        least = [NOTHING]
        for operation in reversed(self.instance.operations):
            own = min((self.op_cost(operation, needs, result) for needs, result in self.rules(operation)), default=NOTHING)
            least.append(plus(own, least[-1]))
        return least[::-1]

    # --- the search ---------------------------------------------------------------------------------------------

    def extend(
        self, state: State, index: int, operation: Operation, options: Sequence[tuple[tuple[Placement, ...], Placement]]
    ) -> Iterable[State]:
        reason = self._reason(operation)
        for needs, result in options:
            before = plus(state.cost, self.op_cost(operation, needs, result))
            ways: list[tuple[Cost, Mapping[int, tuple[Placement, ...]], tuple[Transition, ...]]] = [(before, state.exists, ())]
            for operand, need in zip(operation.operands, needs, strict=True):
                ways = [
                    (self._add(cost, steps), _with(exists, operand, steps), (*made, *steps))
                    for cost, exists, made in ways
                    for steps in self._ways(exists, operand, need, index, operation.span, reason)
                ]
            for cost, exists, made in ways:
                alive = {v: p for v, p in {**exists, operation.result: (result,)}.items() if self.last_use.get(v, -1) > index}
                yield State(cost, alive, Choice(state.choice, needs, result, made))

    def _finish(self, state: State) -> Iterable[State]:
        assert self.instance.result_span is not None
        span, last = self.instance.result_span, len(self.instance.operations)
        wanted = [(self.instance.result_placement, f"the boundary of `{self.instance.module}` declares it")]
        if self.is_entry:
            wanted.append((self.replicated, "sampling needs whole rows, the same bits on every rank"))
        exists, cost, transitions = state.exists, state.cost, []
        for need, reason in wanted:
            step = self._reach(exists, self.instance.result, need, last, span, reason)
            if step is None:
                return
            if step.moves:
                transitions.append(step)
                exists = _with(exists, self.instance.result, (step,))
                cost = self._add(cost, (step,))
        yield State(cost, exists, Choice(state.choice, (), wanted[-1][0], tuple(transitions)))

    def _reach(
        self, exists: Mapping[int, tuple[Placement, ...]], value: int, need: Placement, index: int, span: Span, reason: str
    ) -> Transition | None:
        """The cheapest way to have `value` as `need`, from any placement of it that exists; no moves when it does already."""
        if need in exists[value]:
            return Transition(value, need, need, (), index, span, reason)
        best: tuple[Cost, Transition] | None = None
        for source in exists[value]:
            found = self._route(value, source, need)
            if found is not None and (best is None or found[1] < best[0]):
                best = (found[1], Transition(value, source, need, found[0], index, span, reason))
        return best[1] if best else None

    def _ways(
        self, exists: Mapping[int, tuple[Placement, ...]], value: int, need: Placement, index: int, span: Span, reason: str
    ) -> Iterable[tuple[Transition, ...]]:
        """The cheapest way to `need`, and those by way of the whole value, which others may then read: dearer here, cheaper in all."""
        direct = self._reach(exists, value, need, index, span, reason)
        if direct is None:
            return
        if not direct.moves:
            yield ()
            return
        yield (direct,)
        for whole in dict.fromkeys((self._whole_where_changed(direct), self.replicated)):
            if whole in exists[value] or whole == need:
                continue
            first = self._reach(exists, value, whole, index, span, reason)
            if first is not None:
                second = self._reach({value: (*exists[value], whole)}, value, need, index, span, reason)
                if second is not None and second.source == whole:
                    yield first, second

    def _whole_where_changed(self, step: Transition) -> Placement:
        return tuple(p if p == q else None for p, q in zip(step.source, step.target, strict=True))

    def _route(self, value: int, source: Placement, need: Placement) -> tuple[tuple[Move, ...], Cost] | None:
        key = (value, source, need)
        if key not in self._routes:
            shape = self.instance.values[value].shape
            self._routes[key] = route(shape, self.mesh, source, need, lambda now, move: self._price(value, now, move))
        return self._routes[key]

    def _may_move(self, value: int, move: Move) -> bool:
        if move.kind in self.options.deny or (value, move.kind) in self.forbidden:
            return False
        if value in self.stored and value not in self.movable:
            return False
        factors = self.instance.values[value].shape.factors
        return not factors or factors[0].name != PAGES  # a cache stays where it is

    def rules(self, operation: Operation) -> list[tuple[tuple[Placement, ...], Placement]]:
        """Every combination of the op's rules over the mesh's axes, less those that cannot divide."""
        if operation.op in ("pin", "keep"):
            placement = self.instance.values[operation.result].placement
            assert placement is not None
            return [((placement,), placement)]
        if operation.op == "call":
            target: CallTarget = operation.attributes["target"]
            callee = self.typed.instances[target.instance]
            contract = tuple(p for i in callee.parameters if (p := callee.values[i].placement) is not None)
            return [(contract, callee.result_placement)]
        found = []
        values = [*operation.operands, operation.result]
        for combination in itertools.product(rules(operation.signature), repeat=len(self.mesh.active)):
            placements = tuple(tuple((*rule.operands, rule.result)[i] for rule in combination) for i in range(len(values)))
            if all(self._may_be(self.instance.values[v].shape, p) for v, p in zip(values, placements, strict=True)):
                found.append((placements[:-1], placements[-1]))
        return found

    def _may_be(self, shape: Shape, placement: Placement) -> bool:
        """Tokens are split on axes where some boundary of the module has them so, and elsewhere where each rank has one at least: to share
        out fewer saves nothing, and costs a launch."""
        if shape.factors and shape.factors[0].name == DYNAMIC[0]:
            for axis, place in enumerate(placement):
                if place == 0 and axis not in self.token_axes and self.options.tokens < self.mesh.active[axis].known_size:
                    return False
        return divides(shape, self.mesh, placement)

    def _token_axes(self) -> frozenset[int]:
        """The axes on which a declared placement of this module, or the contract of one that it calls, splits the step's tokens."""
        instance = self.instance
        declared = [(v.shape, v.placement) for v in instance.values if v.placement is not None]
        declared.append((instance.values[instance.result].shape, instance.result_placement))
        for operation in instance.operations:
            if operation.op == "call":
                target: CallTarget = operation.attributes["target"]
                callee = self.typed.instances[target.instance]
                declared += [(callee.values[i].shape, callee.values[i].placement or ()) for i in callee.parameters]
                declared.append((callee.values[callee.result].shape, callee.result_placement))
        return frozenset(
            axis
            for shape, placement in declared
            for axis, place in enumerate(placement)
            if isinstance(place, int) and shape.factors[place].name in SPLITTABLE
        )

    def _merge(self, states: Iterable[State]) -> list[State]:
        """Of states with the same placements the cheapest; none that another could become at no higher price."""
        best: dict[frozenset[tuple[int, frozenset[Placement]]], State] = {}
        for state in states:
            key = frozenset((v, frozenset(p)) for v, p in state.exists.items())
            if key not in best or state.cost < best[key].cost:
                best[key] = state
        kept: list[State] = []
        for state in sorted(best.values(), key=lambda s: s.cost):
            if not any(self._becomes(other, state) for other in kept):
                kept.append(state)
        return kept

    def _becomes(self, state: State, other: State) -> bool:
        """Whether `state`, at its cost and that of the transitions, can have every placement that `other` has for what that cost."""
        cost = state.cost
        for value, placements in other.exists.items():
            for need in placements:
                if need not in state.exists[value]:
                    more = self._price_of(value, state.exists[value], need)
                    if more is None:
                        return False
                    cost = plus(cost, more)
                    if cost > other.cost:
                        return False
        return True

    def _price_of(self, value: int, exist: tuple[Placement, ...], need: Placement) -> Cost | None:
        """The least cost of having `value` as `need` when it exists as these."""
        key = (value, exist, need)
        if key not in self._prices:
            found = [r[1] for source in exist if (r := self._route(value, source, need)) is not None]
            self._prices[key] = min(found, default=None)
        return self._prices[key]

    def _add(self, cost: Cost, steps: Sequence[Transition]) -> Cost:
        for step in steps:
            found = self._route(step.value, step.source, step.target)
            assert found is not None
            cost = plus(cost, found[1])
        return cost

    def op_cost(self, operation: Operation, needs: tuple[Placement, ...], result: Placement) -> Cost:
        """What the operation itself takes on a rank."""
        key = (operation.result, needs, result)
        if key not in self._op_costs:
            shapes = [self.instance.values[v].shape for v in (*operation.operands, operation.result)]
            taken = op_seconds(operation, shapes, (*needs, result), self.mesh, self.rows, self.machine, self._experts_read(operation))
            self._op_costs[key] = (round(taken * 1e12), 0, 0, 0)
        return self._op_costs[key]

    def _experts_read(self, operation: Operation) -> float:
        """The share of experts that some token of the step is sent to, as if each were as likely as any other."""
        route = next((o for o in self.instance.operations if o.op == "route" and o.result in operation.operands), None)
        if operation.op != "experts" or route is None:
            return 1.0
        experts, top_k = self.instance.values[route.result].shape.factors[-1].size, route.attributes["top_k"]
        return 1.0 if experts is None or not isinstance(top_k, int) else float(1 - (1 - min(1.0, top_k / experts)) ** self.options.tokens)

    def _price(self, value: int, placement: Placement, move: Move) -> Cost | None:
        """One move of a value that is so placed; None where it may not be made."""
        if not self._may_move(value, move):
            return None
        shape = self.instance.values[value].shape
        if move.kind not in COLLECTIVES:
            taken = copy_seconds(shape, moved(self.mesh, placement, move), self.mesh, self.rows, self.machine)
            return round(taken * 1e12), 0, 0, 1
        size = payload(shape, self.mesh, placement, move, self.options.dtype)
        rows = self.rows[size.row]
        taken = seconds(move, self.mesh.size_of(move.axes), size.per_row * rows, self.options.topology)
        return round(taken * 1e12), size.per_row * rows, int(size.row == "T"), 1

    def _collect(self, state: State) -> PlacedInstance:
        chain: list[Choice] = []
        choice = state.choice
        while choice is not None:
            chain.append(choice)
            choice = choice.previous
        chain.reverse()
        placements: list[Placement] = [v.placement or self.replicated for v in self.instance.values]
        for operation, made in zip(self.instance.operations, chain[:-1], strict=True):
            placements[operation.result] = made.result
        return PlacedInstance(
            self.instance,
            tuple(placements),
            tuple(c.operands for c in chain[:-1]),
            tuple(t for c in chain for t in c.transitions),
            chain[-1].result,
            state.cost[0] / 1e12,
        )

    def _reason(self, operation: Operation) -> str:
        if operation.op == "call":
            target: CallTarget = operation.attributes["target"]
            return f"the boundary of `{self.typed.instances[target.instance].module}` declares it"
        return "it is pinned here" if operation.op == "pin" else f"`{operation.name}` needs it"


def _with(exists: Mapping[int, tuple[Placement, ...]], value: int, steps: Sequence[Transition]) -> Mapping[int, tuple[Placement, ...]]:
    return {**exists, value: (*exists[value], *(s.target for s in steps))} if steps else exists
