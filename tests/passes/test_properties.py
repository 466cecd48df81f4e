"""Random modules: simulated ranks give what one device gives, and no plan costs less than the one that is chosen."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.passes.random_models import CONFIG, RandomModel, models

from tsc.diagnostics import CompileError
from tsc.elaborate import elaborate
from tsc.front import ModelSource, place_model
from tsc.parser import parse
from tsc.program import TypedModel
from tsc.simulation.simulate import TOLERANCE, simulate
from tsc.spans import Source
from tsc.types import Placement
from tspasses.placed import Options
from tspasses.plan import plan_of
from tspasses.routes import Cost, plus
from tspasses.search import Search, Stuck

QUIET = [HealthCheck.filter_too_much, HealthCheck.too_slow]
Exists = dict[int, tuple[Placement, ...]]


def source_of(text: str) -> ModelSource:
    source = Source("random.ts", text)
    return ModelSource("random", source, parse(source))


def typed_of(model: RandomModel) -> TypedModel:
    return elaborate(source_of(model.text).file, CONFIG, model.axes)


def places(model: RandomModel) -> bool:
    """Whether it can be placed: what cannot be is a weight that would move, or a block where a summand is declared."""
    try:
        place_model(source_of(model.text), CONFIG, model.axes, Options())
    except CompileError as error:
        if {d.code for d in error.diagnostics} <= {"TS0301", "TS0302", "TS0303"}:
            return False
        raise
    return True


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(models())
def test_simulated_ranks_equal_one_device(model: RandomModel) -> None:
    assume(places(model))
    found = simulate(source_of(model.text), CONFIG, model.axes)
    assert [c for c in found.comparisons if not c.difference <= TOLERANCE or c.same_bits is False] == []


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(models())
def test_one_rank_has_no_collective(model: RandomModel) -> None:
    assert plan_of(place_model(source_of(model.text), CONFIG, dict.fromkeys(model.axes, 1), Options())).items == ()


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(models())
def test_names_of_axes_do_not_matter(model: RandomModel) -> None:
    renamed = {"a": "alpha", "b": "beta"}
    text = model.text.replace("@a", "@alpha").replace("@b", "@beta").replace("sum a", "sum alpha").replace("sum b", "sum beta")
    text = text.replace(f"mesh {{ {' '.join(model.axes)} }}", f"mesh {{ {' '.join(renamed[a] for a in model.axes)} }}")
    assume(places(model))
    one = plan_of(place_model(source_of(model.text), CONFIG, model.axes, Options()))
    other = plan_of(place_model(source_of(text), CONFIG, {renamed[a]: n for a, n in model.axes.items()}, Options()))
    assert [(i.kind, i.value, i.bytes_per_row) for i in one.items] == [(i.kind, i.value, i.bytes_per_row) for i in other.items]


def plans(
    search: Search,
    index: int = 0,
    exists: Exists | None = None,
    cost: Cost = (0, 0, 0, 0),
    shuffle: random.Random | None = None,
    below: Cost | None = None,
) -> Iterator[Cost]:
    """The cost of every valid plan of a module, each choice of rules and of the placements that transitions start from: no state is
    merged with another. `below`: only of plans that cost less, so that what has begun and costs as much already is given up."""
    if below is not None and cost >= below:
        return
    instance = search.instance
    if exists is None:
        exists = {i: (v.placement,) for i, v in enumerate(instance.values) if v.placement is not None and v.kind != "result"}
    if index == len(instance.operations):
        for _, more in reached(search, exists, instance.result, instance.result_placement):
            if below is None or plus(cost, more) < below:
                yield plus(cost, more)
        return
    operation = instance.operations[index]
    rules = search.rules(operation)
    for needs, result in shuffle.sample(rules, len(rules)) if shuffle else rules:
        ways: list[tuple[Exists, Cost]] = [(exists, plus(cost, search.op_cost(operation, needs, result)))]
        for operand, need in zip(operation.operands, needs, strict=True):
            ways = [(e, plus(c, more)) for known, c in ways for e, more in reached(search, known, operand, need)]
        for known, c in ways:
            yield from plans(search, index + 1, {**known, operation.result: (result,)}, c, shuffle, below)


def reached(search: Search, exists: Exists, value: int, need: Placement) -> Iterator[tuple[Exists, Cost]]:
    if need in exists[value]:
        yield exists, (0, 0, 0, 0)
        return
    if search.instance.values[value].kind == "cache":
        return
    whole = (None,) * len(need)
    for source in exists[value]:
        found = search._route(value, source, need)
        if found is not None:
            yield {**exists, value: (*exists[value], need)}, found[1]
        first, second = search._route(value, source, whole), search._route(value, whole, need)
        if first is not None and second is not None and whole not in (need, *exists[value]):
            yield {**exists, value: (*exists[value], whole, need)}, plus(first[1], second[1])


def total(search: Search) -> Cost:
    cost: Cost = (0, 0, 0, 0)
    placed = search.run()
    for operation, needs in zip(search.instance.operations, placed.needs, strict=True):
        cost = plus(cost, search.op_cost(operation, needs, placed.placements[operation.result]))
    for t in placed.transitions:
        found = search._route(t.value, t.source, t.target)
        assert found is not None
        cost = plus(cost, found[1])
    return cost


@pytest.mark.slow
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(models(most=4))
def test_the_search_finds_what_brute_force_finds(model: RandomModel) -> None:
    typed = typed_of(model)
    search = Search(typed, typed.instances["M"], Options(tokens=64), is_entry=False)
    try:
        best = total(search)
    except Stuck:
        assert next(plans(search), None) is None
        return
    every = list(plans(search))
    assert best == min(every)


@pytest.mark.slow
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(models(most=6))
def test_brute_force_finds_nothing_cheaper(model: RandomModel) -> None:
    """Of up to six operations, where listing every plan would take too long: all that could cost less are tried."""
    typed = typed_of(model)
    search = Search(typed, typed.instances["M"], Options(tokens=64), is_entry=False)
    try:
        best = total(search)
    except Stuck:
        assert next(plans(search), None) is None
        return
    assert next(plans(search, below=best), None) is None


@pytest.mark.slow
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(models(), st.sampled_from([4, 6]))
def test_splitting_an_axis_keeps_the_bytes(model: RandomModel, ranks: int) -> None:
    """An axis that is made of two has the collectives of one over both."""
    axes = {**model.axes, "a": ranks}
    others = "".join(f" {b}" for b in model.axes if b != "a")
    text = model.text.replace(f"mesh {{ {' '.join(model.axes)} }}", f"mesh {{ a = c * d where c = 2{others} }}")
    assert text != model.text
    sizes = RandomModel(model.text, axes, model.operations)
    assume(places(sizes))
    one = plan_of(place_model(source_of(model.text), CONFIG, axes, Options()))
    other = plan_of(place_model(source_of(text), CONFIG, axes, Options()))
    assert [(i.kind, i.value, i.bytes_per_row) for i in one.items] == [(i.kind, i.value, i.bytes_per_row) for i in other.items]


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(models(most=6))
def test_no_random_plan_costs_less(model: RandomModel) -> None:
    typed = typed_of(model)
    search = Search(typed, typed.instances["M"], Options(tokens=64), is_entry=False)
    try:
        best = total(search)
    except Stuck:
        assume(False)
    generator = random.Random(0)
    for _ in range(20):
        assert best <= next(plans(search, shuffle=generator))
