"""The placement rules of every function, judged by brute force: each rule is sound, and every other sound one is left out on purpose.

For every placement of the operands on an axis of n ranks, each rank runs the op's reference on what it would hold. A placement of the
result is sound when putting the ranks' results together as it says gives the op's result on the whole operands, for random integers
and random ways to write a value as a sum. Integers are exact in f64; so are their sums, and rounding elsewhere is far below what
an unsound rule gets wrong. Not a proof: six draws for each of two and three ranks.

Legend: T tokens, S sequences, K key heads, G query heads of each, E elements a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import tskernels.library  # noqa: F401  # defines torch.ops.ts
from tsc.signatures import Rule, rules
from tsc.stdlib import BUILTINS, Typing
from tsc.types import AxisPlacement, Factor, Shape

TRIALS = 6
RANKS = (2, 3)
PAGES, PAGE_SIZE = 6, 2


Places = tuple[AxisPlacement, ...]
"""Of each operand."""


@dataclass(frozen=True)
class Case:
    """How an op is tried. shapes: of its operands, weights with their groups; statics: what the language gives it, one set a trial;
    run: the reference on operands that have a dimension for each factor, given the rank's index where operand `sharded` is split
    on its first factor (else 0); integers: operands of indices below a bound; paged: caches, whose second dimension is a page's rows;
    alike: operands that are tried in the placements of others alone, where there are too many to go through all."""

    shapes: Sequence[str]
    run: Callable[..., Tensor]
    statics: Sequence[Mapping[str, Any]] = ({},)
    integers: Mapping[int, int] = field(default_factory=dict)
    paged: Sequence[int] = ()
    alike: Mapping[int, int] = field(default_factory=dict)


SIZES = {"pages": PAGES, "T": 6, "S": 6, "K": 6, "G": 6, "E": 6, "D": 6, "F": 6, "V": 12, "2": 2, "C": 6, "W": 12, "1": 1}


def shape(text: str) -> Shape:
    """`T (K E)` is a dimension T and one that joins K and E; `f32 S` has an element type; `S_` is S where that alone would be indices."""
    dtype, _, rest = text.partition(" ")
    if dtype in ("i64", "f32"):
        return replace(shape(rest), dtype=dtype)
    groups = [part.split() for part in text.replace("(", ",(").replace(")", "),").split(",") if part.strip()]
    dimensions: list[list[Factor]] = []
    for group in groups:
        names = [name.strip("()_") for name in group]
        factors = [Factor(n, SIZES[n]) for n in names]
        dimensions.extend([factors] if group[0].startswith("(") else [[f] for f in factors])
    return Shape.of("i32" if text in ("T", "S") else "", dimensions)


def flat_linear(x: Tensor, w: Tensor, *rest: Any, contracted: int) -> Tensor:
    """`linear` on a weight with a dimension for each factor: joined, multiplied, split. rest: a bias, and the rank's index."""
    lead, out, inner = x.shape[: x.dim() - contracted], w.shape[: w.dim() - contracted], w.shape[w.dim() - contracted :]
    bias = [b.reshape(-1) for b in rest[:-1]]
    result: Tensor = torch.ops.ts.linear(x.reshape(*lead, -1), w.reshape(out.numel(), inner.numel()), *bias)
    return result.view(*lead, *out)


# Four sequences: a chunk after two tokens, a token after one, a prompt of one, a chunk after a token. Blocks of 2 or 3 rows hold whole
# ones, and blocks of 2 or 3 pages all the pages of those.
SPANS = torch.tensor([[0, 2], [2, 3], [3, 4], [4, 6]], dtype=torch.int32)
LENGTHS = torch.tensor([4, 2, 1, 3], dtype=torch.int32)
TABLES = torch.tensor([[1, 0], [2, 2], [3, 3], [4, 5]], dtype=torch.int32)
SLOTS = torch.tensor([0, 1, 5, 6, 9, 10], dtype=torch.int32)


def append(op: Callable[..., Tensor], cache: Tensor, *rows: Tensor, shard: int) -> Tensor:
    """A rank that has some of the pages takes its block of the slots, and counts from its first page, as when lowered."""
    slots = SLOTS.chunk(PAGES // len(cache))[shard] - shard * len(cache) * PAGE_SIZE if len(cache) < PAGES else SLOTS
    return op(cache.clone(), *rows, slots)


def attend(op: Callable[..., Tensor], queries: Sequence[Tensor], cache: Tensor, shard: int, *attributes: float) -> Tensor:
    """With a window and without one, since that is the cache's: a placement must be sound with both."""
    tables = TABLES - shard * len(cache)
    windows = [(scale, window, *rest) for window in (0, 2) for scale, *rest in [attributes]]
    return torch.stack([op(*queries, cache, SPANS, LENGTHS, tables, shard, *rest) for rest in windows])


def attention(q: Tensor, cache: Tensor, shard: int, *, scale: float, softcap: float) -> Tensor:
    return attend(torch.ops.ts.attention, [q], cache, shard, scale, softcap)


def sink_attention(q: Tensor, cache: Tensor, sinks: Tensor, shard: int, *, scale: float, softcap: float) -> Tensor:
    def op(queries: Tensor, pages: Tensor, *rest: Any) -> Tensor:
        result: Tensor = torch.ops.ts.sink_attention(queries, pages, sinks, *rest)
        return result

    return attend(op, [q], cache, shard, scale, softcap)


def latent_attention(q: Tensor, rotated: Tensor, cache: Tensor, shard: int, *, scale: float) -> Tensor:
    return attend(torch.ops.ts.latent_attention, [q, rotated], cache, shard, scale)


# Of each sequence one page, among those of the ranks that have its rows; the third begins with the step.
STATES = torch.tensor([1, 2, ~3, 4], dtype=torch.int32)


def recur(op: Callable[[Tensor, Tensor, Tensor, int], Tensor], state: Tensor, shard: int) -> Tensor:
    """What two steps give, the second's sequences going on from what the first has left; in one number each."""
    pages = [torch.where(pages < 0, pages + shard * len(state), pages - shard * len(state)) for pages in (STATES, STATES.maximum(~STATES))]
    own = state.clone()
    first, second = (op(own, SPANS, of_step, shard) for of_step in pages)
    return first + torch.pi * second


def short_conv(x: Tensor, w: Tensor, state: Tensor, shard: int) -> Tensor:
    return recur(lambda *step: torch.ops.ts.short_conv(x, w, *step), state, shard)


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, shard: int, *, scale: float, eps: float
) -> Tensor:
    return recur(lambda *step: torch.ops.ts.gated_delta(q, k, v, decay, beta, *step, scale, eps), state, shard)


KEY = (127 << 55) + 0xFFFFFFFF
"""The key of 1.0 at index 0."""

ROUTES: Sequence[Mapping[str, Any]] = [
    {"top_k": 2, "score": score, "normalize": normalize, "scale": 2.0, "groups": groups, "top_groups": 1, "group_best": 2}
    for score, normalize, groups in (("softmax", True, 1), ("sigmoid", False, 1), ("sigmoid", True, 2))
]

EXPERTS = ("T D", "T K", "K F D", "K F D", "K D F")

CASES: Mapping[str, Sequence[Case]] = {
    "embedding": [Case(("T", "V D"), lambda ids, table, shard: torch.ops.ts.embedding(ids, table, shard), integers={0: 12})],
    "linear": [
        Case(("T D", "F D"), flat_linear),
        Case(("T D", "(K E) D"), flat_linear),
        Case(("T K E", "D (K E)"), flat_linear),
        Case(("T D", "(K E) D", "(K E)"), flat_linear),
        Case(("T K E", "D (K E)", "D"), flat_linear),
    ],
    "rms_norm": [
        Case(
            ("T K E", "E"),
            lambda x, w, shard, eps, offset: torch.ops.ts.rms_norm(x, w, eps, offset),
            [{"eps": 0.5, "offset": 0.0}, {"eps": 0.5, "offset": 1.0}],
        )
    ],
    "rope": [
        Case(
            ("T K E", "T"),
            lambda x, positions, shard, theta, kind, parameters, interleaved, fraction: torch.ops.ts.rope(
                x, positions, theta, kind, list(parameters), interleaved, fraction
            ),
            [
                {"theta": 10.0, "scaling": None, "interleaved": False, "fraction": 1.0},
                {"theta": 10.0, "scaling": None, "interleaved": False, "fraction": 0.7},
                {"theta": 10.0, "scaling": {"rope_type": "linear", "factor": 2.0}, "interleaved": True, "fraction": 1.0},
            ],
            integers={1: 9},
        )
    ],
    **{op: [Case(("T K E",), lambda x, shard, op=op: getattr(torch.ops.ts, op)(x))] for op in ("silu", "sigmoid", "gelu", "gelu_tanh")},
    "softcap": [Case(("T K E",), lambda x, shard, cap: torch.ops.ts.softcap(x, cap), [{"cap": 2.0}])],
    "scale_rows": [Case(("T K E", "T K 1"), lambda x, factors, shard: torch.ops.ts.scale_rows(x, factors))],
    "scale": [Case(("T K E",), lambda x, shard, factor: torch.ops.ts.scale(x, factor), [{"factor": 3.0}])],
    **{op: [Case(("T K E", "T K E"), lambda x, y, shard, op=op: getattr(torch.ops.ts, op)(x, y))] for op in ("add", "mul")},
    "take_rows": [
        Case(("T K E", "S"), lambda x, rows, shard: torch.ops.ts.take_rows(x, rows), integers={1: 6}),
        Case(("T D", "S"), lambda x, rows, shard: torch.ops.ts.embedding(rows, x, shard), integers={1: 6}),  # as it is lowered
    ],
    "cache_append": [
        Case(
            ("pages 2 K E", "T K E", "T K E"),
            lambda cache, k, v, shard: append(torch.ops.ts.cache_append, cache, k, v, shard=shard),
            paged=(0,),
        )
    ],
    "attention": [
        Case(("T K G E", "pages 2 K E"), attention, [{"scale": 0.5, "softcap": 0.0}, {"scale": 0.5, "softcap": 3.0}], paged=(1,))
    ],
    "sink_attention": [
        Case(("T K G E", "pages 2 K E", "K G"), sink_attention, [{"scale": 0.5, "softcap": cap} for cap in (0.0, 3.0)], paged=(1,))
    ],
    "einsum": [
        Case((a, b), lambda x, y, shard, equation: torch.ops.ts.einsum(x, y, equation), [{"equation": e}])
        for a, b, e in (("T K E", "K E D", "the,hec->thc"), ("T K E", "K D E", "the,hce->thc"), ("T D", "D F", "td,df->tf"))
    ],
    "slice": [
        Case(
            ("T V D",),
            lambda x, shard, dim, start, length: torch.ops.ts.narrow(x, start, length, dim),
            [{"dim": 1, "start": start, "length": 6, "part": Factor("K", 6)} for start in (0, 3, 6)],
        )
    ],
    "unflatten": [
        Case(
            ("T V D",),
            lambda x, shard, dim, sizes: torch.ops.ts.split(x, list(sizes), dim),
            [{"dim": 1, "parts": (Factor("2", 2), Factor("K", 6))}],
        )
    ],
    "short_conv": [Case(("T K E", "K E 1 2", "f32 pages 1 K E"), short_conv)],
    "decay": [Case(("T K G", "f32 K G", "f32 K G"), lambda x, rate, bias, shard: torch.ops.ts.decay(x, rate / 4, bias))],
    "gated_delta": [
        Case(
            ("T K C", "T K C", "T K G E", "f32 T K G", "T K G", "f32 pages K G C E"),
            gated_delta,
            [{"scale": 0.5, "eps": 0.25}],
            alike={1: 0, 4: 3},
        )
    ],
    "latent_append": [
        Case(
            ("pages W", "T C", "T E"),
            lambda cache, latent, rotated, shard: append(torch.ops.ts.latent_append, cache, latent, rotated, shard=shard),
            paged=(0,),
        )
    ],
    "latent_attention": [Case(("T K C", "T K E", "pages W"), latent_attention, [{"scale": 0.5}], paged=(2,))],
    "max_key": [Case(("S V",), lambda x, shard: torch.ops.ts.max_key(x, shard))],
    "top_keys": [Case(("S V",), lambda x, shard, k, width: torch.ops.ts.top_keys(x, shard, k, width), [{"k": 2, "width": 2}])],
    "merge_keys": [Case(("S V D",), lambda keys, shard: torch.ops.ts.merge_keys(keys))],
    "key_index": [Case(("i64 S V",), lambda keys, shard: torch.ops.ts.key_index(KEY - keys.long().abs()))],
    "key_value": [Case(("i64 S V",), lambda keys, shard: torch.ops.ts.key_value((keys.long() + 127) << 55).double())],
    "row_max": [Case(("S V",), lambda x, shard: torch.ops.ts.row_max(x))],
    "row_sum": [Case(("f32 S V",), lambda x, shard: torch.ops.ts.row_sum(x))],
    "row_squares": [Case(("T K E",), lambda x, shard: torch.ops.ts.row_squares(x))],
    "rms_scale": [
        Case(
            ("T K E", "f32 T", "K E"),
            lambda x, squares, w, shard, eps, offset, count: torch.ops.ts.rms_scale(x, squares + 20, w, eps, offset, count),
            [{"eps": 0.5, "offset": 0.0}, {"eps": 0.5, "offset": 1.0}],
        )
    ],
    "exp_minus": [Case(("S V", "f32 S_"), lambda x, of_row, shard: torch.ops.ts.exp_minus(x, of_row))],
    "divide_rows": [Case(("f32 S V", "f32 S_"), lambda x, of_row, shard: torch.ops.ts.divide_rows(x, of_row + 20))],
    "route": [
        Case(operands, lambda *tensors, shard=0, **choice: torch.ops.ts.route(*tensors[:-1], **choice), ROUTES)
        for operands in (("T V",), ("T V", "V"))
    ],
    "experts": [
        Case(operands, lambda *tensors, shard=0, **gating: torch.ops.ts.experts(*tensors[:-1], **gating), [gating], alike=alike)
        for operands, alike in ((EXPERTS, {}), ((*EXPERTS, "K F", "K F", "K D"), {5: 2, 6: 3}))
        for gating in ({"alpha": 1.0, "limit": 0.0, "offset": 0.0}, {"alpha": 1.5, "limit": 4.0, "offset": 1.0})
    ],
}

LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "cache_append": {
        "split 3, split 2, split 2 -> split 3": "a head is never split: attention, the one reader of a cache, needs whole ones",
        "sum, sum, sum -> sum": "nothing reads a cache of summands, and a cache cannot be reduced",
    },
    "short_conv": {"sum, whole, sum -> sum": "a state is never pending: it stays where it is"},
    "gated_delta": {"whole, whole, sum, whole, whole, sum -> sum": "a state is never pending: it stays where it is"},
    "latent_append": {"sum, sum, sum -> sum": "nothing reads a cache of summands, and a cache cannot be reduced"},
}
"""Sound rules that the table does not have, and why: the placements of the operands, then of the result."""


INDEXED = {"embedding": (1, 0), "take_rows": (0, 0), "max_key": (0, 1), "top_keys": (0, 1)}
INDEXED |= {"attention": (1, 0), "sink_attention": (1, 0), "latent_attention": (2, 0), "cache_append": (0, 0), "latent_append": (0, 0)}
INDEXED |= {"short_conv": (2, 0), "gated_delta": (5, 0)}
"""Where a split of that operand's factor tells an op its rank's index."""


def dimension(op: str, case: Case, operand: int | None, factor: int) -> int:
    """That of a factor: a cache's second is a page's rows; an attention's result has its window first."""
    is_cache = operand in case.paged if operand is not None else op.endswith("_append")
    return factor + (is_cache and factor > 0) + (operand is None and op.endswith("attention"))


def draw(case: Case, shapes: Sequence[Shape], generator: torch.Generator) -> list[Tensor]:
    """Whole operands of small integers."""

    def one(operand: int, of: Shape) -> Tensor:
        size = [f.size or 0 for f in of.factors]
        if operand in case.paged:
            size.insert(1, PAGE_SIZE)
        if operand in case.integers:
            return torch.randint(0, case.integers[operand], size, generator=generator, dtype=torch.int32)
        return torch.randint(-3, 4, size, generator=generator).double()

    return [one(i, s) for i, s in enumerate(shapes)]


def scatter(x: Tensor, place: AxisPlacement, ranks: int, dim: Callable[[int], int], generator: torch.Generator) -> list[Tensor]:
    """What each rank holds. `dim`: the dimension of a factor."""
    if place is None:
        return [x] * ranks
    if place == "max":
        holder = torch.randint(ranks, x.shape, generator=generator)
        return [torch.where(holder == rank, x, x - torch.randint(1, 5, x.shape, generator=generator)) for rank in range(ranks)]
    if place == "sum":
        parts = [torch.randint(-3, 4, x.shape, generator=generator).to(x.dtype) for _ in range(ranks - 1)]
        return [*parts, x - sum(parts)]
    assert isinstance(place, int)
    return list(x.chunk(ranks, dim(place)))


def gather(parts: Sequence[Tensor], place: AxisPlacement, dim: Callable[[int], int]) -> Tensor | None:
    """The value that the ranks' parts stand for, None where they are none of that placement."""
    if place is None:
        return parts[0] if all(torch.equal(p, parts[0]) for p in parts) else None
    if place == "sum":
        return torch.stack(list(parts)).sum(0)
    if place == "max":
        return torch.stack(list(parts)).amax(0)
    assert isinstance(place, int)
    return torch.cat(list(parts), dim(place))


def typing_of(op: str, case: Case, trial: int) -> tuple[list[Shape], Typing]:
    shapes = [shape(s) for s in case.shapes]
    return shapes, BUILTINS[op].infer(shapes, case.statics[trial % len(case.statics)])


def runner(op: str, case: Case, given: Places, attributes: Mapping[str, Any]) -> Callable[[Sequence[Tensor], int], Tensor]:
    """What a rank runs, of its operands and its index."""
    operand, factor = INDEXED.get(op, (0, -1))
    is_indexed = given[operand] == factor
    return lambda operands, rank: case.run(*operands, rank if is_indexed else 0, **attributes)


@dataclass(frozen=True)
class Trial:
    """Whole operands and what the op gives of them; the state of the generator that drew them, which goes on with their parts."""

    operands: Sequence[Tensor]
    attributes: Mapping[str, Any]
    wanted: Tensor
    drawn: Tensor

    @staticmethod
    def of(op: str, case: Case, number: int) -> Trial:
        generator = torch.Generator().manual_seed(number)
        shapes, typing = typing_of(op, case, number)
        whole = draw(case, shapes, generator)
        wanted = runner(op, case, (None,) * len(shapes), typing.attributes)(whole, 0)
        return Trial(whole, typing.attributes, wanted, generator.get_state())


def sound_rules(op: str, case: Case, ranks: int, among: Collection[Places] | None = None) -> set[Rule]:
    """Every rule that holds in all trials. among: the placements of the operands that are tried, where not all are."""
    shapes, typing = typing_of(op, case, 0)
    trials = [Trial.of(op, case, number) for number in range(TRIALS)]

    def places(of: Shape) -> list[AxisPlacement]:
        return [None, "sum", *(i for i, f in enumerate(of.factors) if (f.size or 0) % ranks == 0)]

    found = set()
    for given in itertools.product(*map(places, shapes)):
        if any(given[one] != given[other] for one, other in case.alike.items()) or (among is not None and given not in among):
            continue
        possible: set[AxisPlacement] = {"max", *places(typing.shape)}
        for trial in trials:
            possible = _holding(op, case, given, possible, ranks, trial)
            if not possible:
                break
        # Whatever is replicated is also its own largest.
        found |= {Rule(given, p) for p in possible if p != "max" or None not in possible}
    return found


def _holding(op: str, case: Case, given: Places, possible: set[AxisPlacement], ranks: int, trial: Trial) -> set[AxisPlacement]:
    """Those placements of the result that one draw does not refute."""
    generator = torch.Generator()
    generator.set_state(trial.drawn)
    run, placed = runner(op, case, given, trial.attributes), enumerate(zip(trial.operands, given, strict=True))
    locals_ = [scatter(x, p, ranks, partial(dimension, op, case, i), generator) for i, (x, p) in placed]
    try:
        made = [run([parts[rank] for parts in locals_], rank) for rank in range(ranks)]
    except (RuntimeError, ValueError, IndexError):  # shapes that do not fit, rows that are not there
        return set()
    holding, wanted = set(), trial.wanted
    for place in possible:
        if len({m.shape for m in made}) == 1:
            found = gather(made, place, partial(dimension, op, case, None))
            if found is not None and found.shape == wanted.shape and torch.allclose(found.double(), wanted.double(), rtol=1e-9, atol=1e-9):
                holding.add(place)
    return holding


def text(rule: Rule) -> str:
    def one(place: AxisPlacement) -> str:
        return "whole" if place is None else place if isinstance(place, str) else f"split {place}"

    return f"{', '.join(map(one, rule.operands))} -> {one(rule.result)}"


LONG = ("experts", "sink_attention", "latent_attention", "gated_delta")
"""Functions of so many operands that their placements take long to go through."""
ALL = [
    pytest.param(op, index, marks=[pytest.mark.slow] if op in LONG else []) for op, cases in CASES.items() for index in range(len(cases))
]


@pytest.mark.parametrize(("op", "index"), ALL)
def test_every_rule_is_sound_and_no_useful_one_is_lacking(op: str, index: int) -> None:
    case = CASES[op][index]
    table = set(rules(typing_of(op, case, 0)[1].signature))
    sound = sound_rules(op, case, RANKS[0])
    for ranks in RANKS[1:]:
        sound &= sound_rules(op, case, ranks, {rule.operands for rule in sound})
    assert sorted(map(text, table - sound)) == [], "unsound rules"
    assert sorted(map(text, sound - table)) == sorted(LEFT_OUT.get(op, {})), "sound rules that are neither in the table nor left out"


@pytest.mark.parametrize(
    ("op", "rule"),
    [
        ("silu", Rule(("sum",), "sum")),
        ("add", Rule((None, "sum"), "sum")),
        ("mul", Rule(("sum", "sum"), "sum")),
        ("rms_norm", Rule((2, 0), 2)),
        ("rms_norm", Rule((None, "sum"), "sum")),  # holds with offset 0 only
        ("attention", Rule(("sum", None), "sum")),
        ("attention", Rule((0, None), 0)),
        ("embedding", Rule((None, 0), None)),
    ],
)
def test_what_is_known_to_be_unsound_is_refuted(op: str, rule: Rule) -> None:
    assert rule not in sound_rules(op, CASES[op][0], 2, [rule.operands])


def test_every_function_is_tried() -> None:
    assert CASES.keys() == BUILTINS.keys()
