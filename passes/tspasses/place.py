"""Choose each value's placement and the transitions between them: exact search over a module, its boundary fixed.

State of the search: which placements of each live value exist so far. Each op extends every state by every rule it has, at the
price of the transitions its operands need; states that agree on the live values keep the cheapest. This is exact for any
dataflow, since nothing but the live values' placements bears on what follows.

Does not: change a declared boundary, move a weight or a cache, or look into a callee: calls are ops with one rule, their contract.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tsc.diagnostics import CompileError, Diagnostic, Note
from tsc.mesh import Mesh
from tsc.program import CallTarget, Instance, Operation, TypedModel, Value
from tsc.signatures import Signature, rules
from tsc.spans import Span
from tsc.types import Placement, Shape
from tspasses.cost import DEFAULT_TOPOLOGY, Topology, payload, seconds
from tspasses.transitions import COLLECTIVES, Move, divides, moves

Cost = tuple[int, int, int]
"""(picoseconds, payload bytes, number of moves): compared in this order, then by source order; integers, so sums are exact."""


@dataclass(frozen=True, slots=True)
class Options:
    """dtype: the model's element type; tokens and sequences: the step size that costs are compared at; deny: collectives not to use."""

    dtype: str = "bf16"
    tokens: int = 1
    sequences: int = 1
    topology: Topology = DEFAULT_TOPOLOGY
    deny: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Transition:
    """Value `value` is turned from `source` into `target` right before operation `operation` (their number: the return)."""

    value: int
    source: Placement
    target: Placement
    moves: tuple[Move, ...]
    operation: int
    span: Span
    reason: str


@dataclass(frozen=True, slots=True)
class PlacedInstance:
    """placements: of every value as it is computed. needs: of each operation's operands as it reads them."""

    instance: Instance
    placements: tuple[Placement, ...]
    needs: tuple[tuple[Placement, ...], ...]
    transitions: tuple[Transition, ...]
    result: Placement


@dataclass(frozen=True)
class PlacedModel:
    typed: TypedModel
    options: Options
    instances: Mapping[str, PlacedInstance] = field(default_factory=dict)

    @property
    def mesh(self) -> Mesh:
        return self.typed.mesh

    @property
    def entry(self) -> PlacedInstance:
        return self.instances[self.typed.entry]


def place(typed: TypedModel, options: Options | None = None) -> PlacedModel:
    """Place every instance, callees before callers. Raises CompileError with all the modules' findings."""
    options = options or Options()
    placed: dict[str, PlacedInstance] = {}
    problems: list[Diagnostic] = []
    for name, instance in typed.instances.items():
        try:
            placed[name] = _Search(typed, instance, options, is_entry=name == typed.entry).run()
        except CompileError as error:
            problems.extend(d for d in error.diagnostics if d not in problems)
    if problems:
        raise CompileError(*problems)
    return PlacedModel(typed, options, placed)


@dataclass(frozen=True, slots=True)
class _Choice:
    """What one step of the search decided, linked to the step before it."""

    previous: _Choice | None
    operands: tuple[Placement, ...]
    result: Placement
    transitions: tuple[Transition, ...]


@dataclass(frozen=True, slots=True)
class _State:
    cost: Cost
    exists: Mapping[int, tuple[Placement, ...]]
    choice: _Choice | None


class _Search:
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
        self._prices: dict[tuple[int, Placement, Placement], Cost] = {}
        self.last_use: dict[int, int] = {instance.result: len(instance.operations)}
        for index, operation in enumerate(instance.operations):
            for operand in operation.operands:
                self.last_use[operand] = max(self.last_use.get(operand, -1), index)

    def run(self) -> PlacedInstance:
        declared = {i: (v.placement,) for i, v in enumerate(self.instance.values) if v.placement is not None and v.kind != "result"}
        states = [_State((0, 0, 0), declared, None)]
        for index, operation in enumerate(self.instance.operations):
            options = self._rules(operation)
            following = self._merge(s for state in states for s in self._extend(state, index, operation, options))
            if not following:
                raise CompileError(self._explain(states, index, operation))
            states = following
        states = self._merge(s for state in states for s in self._finish(state))
        if not states:
            raise CompileError(self._explain_result())
        best = min(states, key=lambda s: s.cost)
        placed = self._collect(best)
        if self.instance.strict:
            self._check_strict(placed)
        return placed

    # --- the search ---------------------------------------------------------------------------------------------

    def _extend(
        self, state: _State, index: int, operation: Operation, options: Sequence[tuple[tuple[Placement, ...], Placement]]
    ) -> Iterable[_State]:
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
                choice = _Choice(state.choice, needs, result, tuple(transitions))
                yield _State(cost, {v: p for v, p in exists.items() if self.last_use.get(v, -1) > index}, choice)

    def _finish(self, state: _State) -> Iterable[_State]:
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
        yield _State(cost, exists, _Choice(state.choice, (), wanted[-1][0], tuple(transitions)))

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

    def _rules(self, operation: Operation) -> list[tuple[tuple[Placement, ...], Placement]]:
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
            if all(divides(self.instance.values[v].shape, self.mesh, p) for v, p in zip(values, placements, strict=True)):
                found.append((placements[:-1], placements[-1]))
        return found

    def _merge(self, states: Iterable[_State]) -> list[_State]:
        """Of states with the same placements the cheapest; none that another could become at no higher price."""
        best: dict[frozenset[tuple[int, frozenset[Placement]]], _State] = {}
        for state in states:
            key = frozenset((v, frozenset(p)) for v, p in state.exists.items())
            if key not in best or state.cost < best[key].cost:
                best[key] = state
        kept: list[_State] = []
        for state in sorted(best.values(), key=lambda s: s.cost):
            if not any(self._becomes(other, state) for other in kept):
                kept.append(state)
        return kept

    def _becomes(self, state: _State, other: _State) -> bool:
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
        return cost[0] + price[0], cost[1] + price[1], cost[2] + price[2]

    def _price(self, value: int, source: Placement, target: Placement, found: tuple[Move, ...]) -> Cost:
        key = (value, source, target)
        if key not in self._prices:
            self._prices[key] = self._priced(self.instance.values[value].shape, source, target, found)
        return self._prices[key]

    def _priced(self, shape: Shape, source: Placement, target: Placement, found: tuple[Move, ...]) -> Cost:
        picoseconds = size = 0
        placement = list(source)
        for move in found:
            moved = payload(shape, self.mesh, tuple(placement), move, self.options.dtype)
            rows = {"T": self.options.tokens, "S": self.options.sequences, "": 1}[moved.row]
            picoseconds += round(seconds(move, self.mesh.size_of(move.axes), moved.per_row * rows, self.options.topology) * 1e12)
            size += moved.per_row * rows if move.kind in COLLECTIVES else 0
            for i, axis in enumerate(self.mesh.active):
                if axis.name in move.axes:
                    placement[i] = target[i]
        return picoseconds, size, len(found)

    def _collect(self, state: _State) -> PlacedInstance:
        chain: list[_Choice] = []
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

    # --- findings -----------------------------------------------------------------------------------------------

    def _reason(self, operation: Operation) -> str:
        if operation.op == "call":
            target: CallTarget = operation.attributes["target"]
            return f"the boundary of `{self.typed.instances[target.instance].module}` declares it"
        return "it is pinned here" if operation.op == "pin" else f"`{operation.op}` needs it"

    def _explain(self, states: list[_State], index: int, operation: Operation) -> Diagnostic:
        state = min(states, key=lambda s: s.cost)
        values = [self.instance.values[v] for v in operation.operands]
        facts = tuple(Note(f"{self._describe(v, state.exists[i][0])}", v.span) for i, v in zip(operation.operands, values, strict=True))
        if denied := self._denied():
            what = "the call" if operation.op == "call" else f"`{operation.op}`"
            return Diagnostic("TS0305", f"{what} needs a collective that is denied ({denied})", operation.span, notes=facts)
        for i, value in zip(operation.operands, values, strict=True):
            if value.kind == "weight" and i not in self.movable:
                fixed = _Search(self.typed, self.instance, self.options, is_entry=self.is_entry, movable=frozenset({i}))
                needed = fixed._needed(state, index, operation, i)
                if needed is not None:
                    return self._weight_moves(operation, value, i, needed)
        if operation.op == "pin":
            pinned = self.instance.values[operation.result]
            now = values[0].shape.text(self.mesh, state.exists[operation.operands[0]][0])
            text = f"`{pinned.name}` is {now}, and cannot become {pinned.shape.text(self.mesh, pinned.placement or self.replicated)}"
            return Diagnostic("TS0303", text, operation.span, notes=facts[:1], fixes=self._without_pin(index, operation))
        return Diagnostic(
            "TS0301",
            f"`{operation.op}` has no rule for these placements, and no legal transition leads to one",
            operation.span,
            notes=facts,
        )

    def _without_pin(self, index: int, pin: Operation) -> tuple[str, ...]:
        labels = tuple(f"x{i}" for i in range(len(self.instance.values[pin.result].shape.factors)))
        free = replace(pin, op="as it is", signature=Signature((labels,), labels, linear=((0,),)))
        operations = [free if i == index else o for i, o in enumerate(self.instance.operations)]
        try:
            placed = _Search(self.typed, replace(self.instance, operations=operations), self.options, is_entry=self.is_entry).run()
        except CompileError:
            return ()
        inferred = self.instance.values[pin.result].shape.text(self.mesh, placed.placements[pin.result])
        return (f"drop the type: `{self.instance.values[pin.result].name}` is then {inferred} (checked)",)

    def _denied(self) -> str:
        """The denied collectives, when they alone stand in the way."""
        free = _Search(self.typed, self.instance, replace(self.options, deny=frozenset()), is_entry=self.is_entry)
        return ", ".join(sorted(self.options.deny)) if self.options.deny and free._solves() else ""

    def _solves(self) -> bool:
        try:
            self.run()
        except CompileError:
            return False
        return True

    def _needed(self, state: _State, index: int, operation: Operation, weight: int) -> Placement | None:
        options = sorted(self._extend(state, index, operation, self._rules(operation)), key=lambda s: s.cost)
        if not options or options[0].choice is None:
            return None
        return next((n for v, n in zip(operation.operands, options[0].choice.operands, strict=True) if v == weight), None)

    def _weight_moves(self, operation: Operation, weight: Value, index: int, needed: Placement) -> Diagnostic:
        assert weight.placement is not None
        declared = weight.shape.text(self.mesh, weight.placement)
        wanted = weight.shape.text(self.mesh, needed)
        changed = [(a, q) for a, p, q in zip(self.mesh.active, weight.placement, needed, strict=True) if p != q]
        how = "gather" if all(q is None for _, q in changed) else "move"
        message = f"weight `{weight.name}` is {declared}, and `{operation.op}` would have to {how} it to {wanted} at run time"
        fixes: tuple[str, ...] = ()
        values = list(self.instance.values)
        values[index] = Value(weight.name, weight.kind, weight.shape, weight.span, needed)
        trial = replace(self.instance, values=values)
        if _Search(self.typed, trial, self.options, is_entry=self.is_entry)._solves():
            factor = math.prod(a.size or 0 for a, _ in changed)
            price = f"; {factor} x the bytes of this weight on each rank, no collective" if how == "gather" and factor else ""
            fixes = (f"declare `weight {weight.name}: {wanted}` (checked{price})",)
        return Diagnostic("TS0302", message, operation.span, notes=(Note("the weight is declared here", weight.span),), fixes=fixes)

    def _explain_result(self) -> Diagnostic:
        result = self.instance.values[self.instance.result]
        declared = result.shape.text(self.mesh, self.instance.result_placement)
        if denied := self._denied():
            message = f"what `{self.instance.module}` returns needs a collective that is denied ({denied})"
            return Diagnostic("TS0305", message, self.instance.result_span, notes=(Note("the value comes from here", result.span),))
        message = f"`{self.instance.module}` declares {declared}, and its result cannot become that"
        return Diagnostic("TS0303", message, self.instance.result_span, notes=(Note("the value comes from here", result.span),))

    def _check_strict(self, placed: PlacedInstance) -> None:
        for transition in placed.transitions:
            kinds = [m.kind for m in transition.moves if m.kind in COLLECTIVES]
            if kinds:
                value = self.instance.values[transition.value]
                now = value.shape.text(self.mesh, transition.source)
                message = (
                    f"`{self.instance.module}` is strict, and `{value.name}` {now} would need {' and '.join(kinds)}: {transition.reason}"
                )
                notes = () if value.span == transition.span else (Note("the value comes from here", value.span),)
                raise CompileError(Diagnostic("TS0304", message, transition.span, notes=notes, fixes=self._declared_as(transition)))

    def _declared_as(self, transition: Transition) -> tuple[str, ...]:
        """The fix that leaves a transition at the boundary to the callers, if the whole model then places."""
        if transition.operation < len(self.instance.operations) or self.is_entry:
            return ()
        changed = replace(self.instance, result_placement=transition.source)
        try:
            place(replace(self.typed, instances={**self.typed.instances, self.instance.name: changed}), self.options)
        except CompileError:
            return ()
        result = self.instance.values[self.instance.result].shape.text(self.mesh, transition.source)
        return (f"declare `{self.instance.module}(...) -> {result}` (checked): its callers then decide where that is resolved",)

    def _describe(self, value: Value, placement: Placement | None = None) -> str:
        return f"`{value.name}` is {value.shape.text(self.mesh, placement or value.placement or self.replicated)}"
