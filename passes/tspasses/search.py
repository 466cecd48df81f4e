"""The search for each value's placement and the transitions between them: exact search over a module, its boundary fixed.

State of the search: which placements of each live value exist so far. Each op extends every state by every rule it has, at the
price of the transitions its operands need; states that agree on the live values keep the cheapest. This is exact for any
dataflow, since nothing but the live values' placements bears on what follows.

Does not: change a declared boundary, move a weight or a cache, or look into a callee: calls are ops with one rule, their contract.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tsc.program import CallTarget, Instance, Operation, TypedModel
from tsc.signatures import rules
from tsc.spans import Span
from tsc.types import SPLITTABLE, Placement, Shape
from tspasses.cost import payload, seconds
from tspasses.placed import Options, PlacedInstance, Transition
from tspasses.transitions import COLLECTIVES, Move, divides, moves

Cost = tuple[int, int, int, int]
"""(picoseconds, payload bytes, collectives over tokens, number of moves): compared in this order, then by source order; integers, so
sums are exact. A step has at least as many tokens as sequences, so of two that cost the same the one over sequences is better."""


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
        self, typed: TypedModel, instance: Instance, options: Options, *, is_entry: bool, movable: frozenset[int] = frozenset()
    ) -> None:
        self.typed = typed
        self.mesh = typed.mesh
        self.instance = instance
        self.options = options
        self.is_entry = is_entry
        self.movable = movable  # weights that may move, to find out what a plan would need
        self.replicated: Placement = (None,) * len(self.mesh.active)
        self.token_axes = self._token_axes()
        self._prices: dict[tuple[int, Placement, Placement], Cost] = {}
        self.last_use: dict[int, int] = {instance.result: len(instance.operations)}
        for index, operation in enumerate(instance.operations):
            for operand in operation.operands:
                self.last_use[operand] = max(self.last_use.get(operand, -1), index)

    def run(self) -> PlacedInstance:
        """The cheapest placement. Raises Stuck where none is left."""
        declared = {i: (v.placement,) for i, v in enumerate(self.instance.values) if v.placement is not None and v.kind != "result"}
        states = [State((0, 0, 0, 0), declared, None)]
        for index, operation in enumerate(self.instance.operations):
            options = self.rules(operation)
            following = self._merge(s for state in states for s in self.extend(state, index, operation, options))
            if not following:
                raise Stuck(self, min(states, key=lambda s: s.cost), index)
            states = following
        finished = self._merge(s for state in states for s in self._finish(state))
        if not finished:
            raise Stuck(self, min(states, key=lambda s: s.cost), len(self.instance.operations))
        return self._collect(min(finished, key=lambda s: s.cost))

    # --- the search ---------------------------------------------------------------------------------------------

    def extend(
        self, state: State, index: int, operation: Operation, options: Sequence[tuple[tuple[Placement, ...], Placement]]
    ) -> Iterable[State]:
        reason = self._reason(operation)
        for needs, result in options:
            transitions: list[Transition] = []
            exists = dict(state.exists)
            cost = state.cost
            for operand, need in zip(operation.operands, needs, strict=True):
                step = self._reach(exists, operand, need, index, operation.span, reason)
                if step is None:
                    break
                if step.moves:
                    transitions.append(step)
                    exists[operand] = (*exists[operand], need)
                    cost = self._add(cost, step)
            else:
                exists[operation.result] = (result,)
                choice = Choice(state.choice, needs, result, tuple(transitions))
                yield State(cost, {v: p for v, p in exists.items() if self.last_use.get(v, -1) > index}, choice)

    def _finish(self, state: State) -> Iterable[State]:
        assert self.instance.result_span is not None
        span, last = self.instance.result_span, len(self.instance.operations)
        wanted = [(self.instance.result_placement, f"the boundary of `{self.instance.module}` declares it")]
        if self.is_entry:
            wanted.append((self.replicated, "sampling needs whole rows, the same bits on every rank"))
        exists, cost, transitions = dict(state.exists), state.cost, []
        for need, reason in wanted:
            step = self._reach(exists, self.instance.result, need, last, span, reason)
            if step is None:
                return
            if step.moves:
                transitions.append(step)
                exists[self.instance.result] = (*exists[self.instance.result], need)
                cost = self._add(cost, step)
        yield State(cost, exists, Choice(state.choice, (), wanted[-1][0], tuple(transitions)))

    def _reach(
        self, exists: Mapping[int, tuple[Placement, ...]], value: int, need: Placement, index: int, span: Span, reason: str
    ) -> Transition | None:
        """The cheapest way to have `value` as `need`, from any placement of it that exists; no moves when it does already."""
        if need in exists[value]:
            return Transition(value, need, need, (), index, span, reason)
        best: tuple[Cost, Transition] | None = None
        for source in exists[value]:
            found = moves(self.instance.values[value].shape, self.mesh, source, need)
            if found is None or not self._allowed(value, found):
                continue
            cost = self._price(value, source, need, found)
            if best is None or cost < best[0]:
                best = (cost, Transition(value, source, need, found, index, span, reason))
        return best[1] if best else None

    def _allowed(self, value: int, found: tuple[Move, ...]) -> bool:
        if any(m.kind in self.options.deny for m in found):
            return False
        if self.instance.values[value].kind == "weight" and value not in self.movable:
            return all(m.kind not in COLLECTIVES for m in found)
        return self.instance.values[value].kind != "cache"

    def rules(self, operation: Operation) -> list[tuple[tuple[Placement, ...], Placement]]:
        """Every combination of the op's rules over the mesh's axes, less those that cannot divide."""
        if operation.op == "pin":
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
        """Tokens are split only on axes where some boundary of the module has them so: elsewhere that saves no bytes and costs a launch."""
        if shape.factors and shape.factors[0].name == SPLITTABLE:
            for axis, place in enumerate(placement):
                if place == 0 and axis not in self.token_axes:
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
            if isinstance(place, int) and shape.factors[place].name == SPLITTABLE
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
                    step = self._reach(state.exists, value, need, 0, self.instance.values[value].span, "")
                    if step is None:
                        return False
                    cost = self._add(cost, step)
                    if cost > other.cost:
                        return False
        return True

    def _add(self, cost: Cost, step: Transition) -> Cost:
        price = self._price(step.value, step.source, step.target, step.moves)
        return cost[0] + price[0], cost[1] + price[1], cost[2] + price[2], cost[3] + price[3]

    def _price(self, value: int, source: Placement, target: Placement, found: tuple[Move, ...]) -> Cost:
        key = (value, source, target)
        if key not in self._prices:
            self._prices[key] = self._priced(self.instance.values[value].shape, source, target, found)
        return self._prices[key]

    def _priced(self, shape: Shape, source: Placement, target: Placement, found: tuple[Move, ...]) -> Cost:
        picoseconds = size = over_tokens = 0
        placement = list(source)
        for move in found:
            moved = payload(shape, self.mesh, tuple(placement), move, self.options.dtype)
            rows = {"T": self.options.tokens, "S": self.options.sequences, "": 1}[moved.row]
            picoseconds += round(seconds(move, self.mesh.size_of(move.axes), moved.per_row * rows, self.options.topology) * 1e12)
            if move.kind in COLLECTIVES:
                size += moved.per_row * rows
                over_tokens += moved.row == "T"
            for i, axis in enumerate(self.mesh.active):
                if axis.name in move.axes:
                    placement[i] = target[i]
        return picoseconds, size, over_tokens, len(found)

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
        )

    def _reason(self, operation: Operation) -> str:
        if operation.op == "call":
            target: CallTarget = operation.attributes["target"]
            return f"the boundary of `{self.typed.instances[target.instance].module}` declares it"
        return "it is pinned here" if operation.op == "pin" else f"`{operation.op}` needs it"
