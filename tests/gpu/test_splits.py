"""How rows and keys are shared out: every row's keys once, as evenly as whole units allow, and never more than there is room for."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tskernels.expansion import MARGIN, MOST_KEYS, expanded, least_tokens
from tskernels.gpu.attention import attention, latent_attention
from tskernels.gpu.expanded_attention import expanded_attention
from tskernels.gpu.launch import StepShape
from tskernels.gpu.sizes import of_operands, value
from tskernels.gpu.splits import EXPANSION, PART, RECORD, expanded_work, expansions, work
from tskernels.registry import Call, Operand
from tskernels.target import gpu
from tsrun.gpu.kernels_file import Prepared
from tsrun.gpu.launching import preparing

few = settings(deadline=None, max_examples=40)
SCALED = {"scale": 0.1, "window": 0, "softcap": 0.0}


def step_of(sequences: list[tuple[int, int]], gaps: list[int], multiprocessors: int) -> StepShape:
    spans, past = [], 0
    for (_, new), gap in zip(sequences, gaps, strict=True):
        spans.append((past + gap, past + gap + new))
        past += gap + new
    return StepShape(spans, [sum(s) for s in sequences], {"T": past + 3, "S": len(spans), "P": 9, "SMS": multiprocessors})


@few
@given(
    sequences=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 12)), min_size=1, max_size=6),
    gap=st.integers(0, 3),
    group=st.sampled_from([1, 3, 8, 24]),
    heads=st.sampled_from([1, 4]),
    wide_from=st.sampled_from([1, 32, 1 << 30]),
    window=st.sampled_from([0, 100]),
    multiprocessors=st.sampled_from([1, 8, 132]),
)
def test_every_row_has_its_keys_once(
    sequences: list[tuple[int, int]], gap: int, group: int, heads: int, wide_from: int, window: int, multiprocessors: int
) -> None:
    step = step_of(sequences, [gap] * len(sequences), multiprocessors)
    made = work(
        step, heads=heads, group=group, narrow=16, wide=64, wide_from=wide_from, unit=32, blocks=2, wide_blocks=1, window=window
    ).reshape(-1, RECORD)
    narrow, wide, combined = made[0, :3].tolist()
    splits, combinations = made[1 : 1 + narrow + wide], made[1 + narrow + wide :]
    assert len(combinations) == combined
    assert all(s[3] <= (16 if i < narrow else 64) for i, s in enumerate(splits))
    tiles: dict[tuple[int, int, int, int, int], list[tuple[int, int]]] = {}
    for sequence, token, row, rows, position, begin, end, _ in splits.tolist():
        tiles.setdefault((sequence, token, row, rows, position), []).append((begin, end))
    claimed = Counter(token * group + row + r for _, token, row, rows, _ in tiles for r in range(rows))
    assert claimed == Counter(range(step.sizes["T"] * group))
    firsts = {span[0]: index for index, span in enumerate(step.spans) if span[0] < span[1]}
    for (sequence, token, row, rows, position), parts in tiles.items():
        parts.sort()
        assert all(before[1] == after[0] for before, after in pairwise(parts))
        if token not in firsts:
            assert parts == [(0, 0)]
            continue
        assert sequence == firsts[token]
        assert position == sequences[sequence][0]
        oldest, newest = position + row // group, position + (row + rows - 1) // group
        begin = max(0, oldest - window + 1) if window else 0
        assert (parts[0][0], parts[-1][1]) == (begin - begin % PART, newest + 1)
    partials = sorted(s[7] for s in splits.tolist() if s[7] >= 0)
    assert partials == [p for c in combinations.tolist() for p in range(c[3], c[3] + c[4])]
    assert len(partials) <= max(1, multiprocessors * (1 if wide else 2) // heads)


@few
@given(st.integers(1, 60), st.integers(1, 132))
def test_one_long_sequence_fills_the_device(keys: int, multiprocessors: int) -> None:
    step = StepShape([(0, 1)], [keys * 4096], {"T": 1, "S": 1, "P": 9, "SMS": multiprocessors})
    made = work(step, heads=1, group=16, narrow=16, wide=64, wide_from=1, unit=32, blocks=1, wide_blocks=1, window=0).reshape(-1, RECORD)
    splits = made[1 : 1 + made[0, 0]]
    lengths = splits[:, 6] - splits[:, 5]
    assert len(splits) <= multiprocessors
    assert lengths.sum() == keys * 4096
    # No smaller size would do: with a unit less each there would be more than there is room for.
    smaller = lengths.max() - 32
    assert smaller == 0 or -(-keys * 4096 // smaller) > multiprocessors
    assert np.all(np.diff(lengths) <= 0)


@few
@given(
    sequences=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 70)), min_size=1, max_size=8),
    multiprocessors=st.sampled_from([1, 132]),
    heads=st.sampled_from([8, 16, 128]),
    page=st.sampled_from([1, 16, 24, 32, 64, 96, 128]),
)
def test_a_plan_has_room_for_any_step(sequences: list[tuple[int, int]], multiprocessors: int, heads: int, page: int) -> None:
    step = step_of(sequences, [1] * len(sequences), multiprocessors)
    i32 = "i32"
    operands = (
        *(Operand("bf16", s) for s in ((None, heads, 512), (None, heads, 64), (None, None, 576))),
        *(Operand(i32, s) for s in ((None, 2), (None,), (None, None))),
    )
    plan = latent_attention(Call("ts::latent_attention", operands, {"scale": 0.1, "window": 0}), gpu("sm_90a"))
    [prepared] = plan.prepared
    tokens, count = step.sizes["T"], step.sizes["S"]
    shapes = [[tokens, heads, 512], [tokens, heads, 64], [9, page, 576], [count, 2], [count], [count, 9]]
    numbers: dict[str, Any] = dict(prepared.keywords)
    made = work(step, **numbers)
    assert len(made) <= value(of_operands(prepared.capacity, shapes, shapes), step.sizes)
    *forms, joining = [(launch, value(of_operands(launch.grid[0], shapes, shapes), step.sizes)) for launch in plan.variants[-1].launches]
    [(attending, blocks)] = [form for form in forms if form[1]]  # by what pages are like
    assert attending.constants["TOGETHER"] == next(n for n in (64, 16, 1) if page % n == 0)
    assert made[0] <= blocks
    assert made[1] == 0
    assert made[2] <= joining[1]


def test_a_sequence_is_expanded_where_that_spares_enough_multiplications() -> None:
    least = least_tokens(128, 64, 512, 128)
    for new in (least - 1, least):
        absorbed, once, each = new * (512 + 64 + 512), 512 * (128 + 128), new * (128 + 64 + 128)
        assert (absorbed - each > MARGIN * once) == (new == least)
    assert least_tokens(512, 64, 512, 512) == 0, "never: heads are as wide as latents"
    assert expanded([(0, 512), (512, 1025), (1025, 1026)], [900, 900, 9000], least) == [False, True, False]
    assert expanded([(0, 900)], [900], 0) == [False]


def test_sequences_that_have_no_room_are_absorbed() -> None:
    spans, lengths = [(0, 200), (200, 400), (400, 600)], [MOST_KEYS - 300, 301, 300]
    assert expanded(spans, lengths, 171) == [True, False, True]


@few
@given(
    sequences=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 300)), min_size=1, max_size=6),
    gap=st.integers(0, 3),
    expanded_from=st.sampled_from([1, 50, 171]),
    multiprocessors=st.sampled_from([1, 8, 132]),
)
def test_each_row_is_absorbed_or_expanded_and_each_key_of_the_latter_is_made_once(
    sequences: list[tuple[int, int]], gap: int, expanded_from: int, multiprocessors: int
) -> None:
    step = step_of(sequences, [gap] * len(sequences), multiprocessors)
    operands = [Operand("bf16", (None, 16, n)) for n in (128, 128, 64)] + [Operand("bf16", (None, None, 576))]
    operands += [Operand("bf16", (16, 128, 512))] * 2 + [Operand("i32", s) for s in ((None, 2), (None,), (None, None))]
    plan = expanded_attention(
        Call("ts::expanded_attention", tuple(operands), {"scale": 0.1, "expanded_from": expanded_from}), gpu("sm_90a")
    )
    shapes = [[step.sizes["T"], 16, 128]] * 3 + [[60, 64, 576]] + [[16, 128, 512]] * 2 + [[len(sequences), 2], [len(sequences)], [6, 60]]
    for_tiles, for_work = plan.prepared
    of_tiles: dict[str, Any] = dict(for_tiles.keywords)
    of_work: dict[str, Any] = dict(for_work.keywords)
    made = {"tiles": expansions(step, **of_tiles), "work": expanded_work(step, **of_work)}
    for prepared in plan.prepared:
        assert len(made[prepared.name]) <= value(of_operands(prepared.capacity, shapes, shapes), step.sizes)
    chosen = [i for i, (_, new) in enumerate(sequences) if new >= expanded_from]
    begins, past = {}, 0
    for sequence in chosen:
        begins[sequence] = past
        past += step.lengths[sequence]
    room = value(of_operands(plan.scratch[2].bytes, shapes, shapes), step.sizes) // (64 * 2)
    assert past <= room or not chosen
    keys = [(s, key + i, place + i) for s, key, count, place in made["tiles"].reshape(-1, EXPANSION)[1:].tolist() for i in range(count)]
    assert sorted(keys) == [(s, key, begins[s] + key) for s in chosen for key in range(step.lengths[s])]
    seen: Counter[int] = Counter()
    splits = made["work"][0]
    for place, token, row, rows, position, begin, end, _ in made["work"].reshape(-1, RECORD)[1 : 1 + splits].tolist():
        assert place in begins.values()
        for i in range(rows):
            seen[token + row + i] += max(0, min(end, position + row + i + 1) - begin)
    wanted = {step.spans[s][0] + i: sequences[s][0] + i + 1 for s in chosen for i in range(sequences[s][1])}
    assert seen == wanted
    others = work(
        step, heads=1, group=16, narrow=16, wide=64, wide_from=1, unit=32, blocks=1, wide_blocks=1, window=0, expanded_from=expanded_from
    )
    for _, token, row, rows, _, begin, end, _ in others.reshape(-1, RECORD)[1 : 1 + others[:2].sum()].tolist():
        if any(t in wanted for t in range(token + row // 16, token + (row + rows - 1) // 16 + 1)):
            assert (begin, end) == (0, 0), "zeros"


@pytest.mark.parametrize("shard", [0, 1])
def test_a_rank_that_has_some_of_the_rows_has_tiles_of_these_alone(shard: int) -> None:
    keywords: dict[str, Any] = {"heads": 8, "group": 4, "narrow": 16, "wide": 128, "wide_from": 32, "unit": 128, "blocks": 2, "window": 0}
    make = preparing(Prepared("work", "tskernels.gpu.splits:work", keywords, 0), {"T": 16, "S": 2, "P": 4, "SMS": 132}, 8, shard, 10**6)
    made = make([(0, 8), (8, 16)], [8, 8]).reshape(-1, RECORD)
    tiles = made[1 : 1 + made[0, 0] + made[0, 1]]
    assert set(tiles[:, 0].tolist()) == {shard}
    assert sorted(token * 4 + row + r for _, token, row, rows, *_ in tiles.tolist() for r in range(rows)) == [*range(32)]


def test_a_rank_that_has_few_rows_of_a_step_has_tiles_of_the_kind_that_the_step_launches() -> None:
    """With more heads to a key than narrow rows, a step of so many tokens launches wide tiles alone."""
    keywords: dict[str, Any] = {"heads": 1, "group": 48, "narrow": 16, "wide": 128, "wide_from": 32, "unit": 128, "blocks": 2, "window": 0}
    make = preparing(Prepared("work", "tskernels.gpu.splits:work", keywords, 0), {"T": 40, "S": 2, "P": 4, "SMS": 132}, 20, 1, 10**6)
    narrow, wide, *_ = make([(0, 20), (20, 40)], [20, 20]).tolist()
    assert (narrow, wide > 0) == (0, True)


@few
@given(
    sequences=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 40)), min_size=1, max_size=40),
    gap=st.integers(0, 3),
    group=st.sampled_from([1, 4, 7, 16, 48]),
)
def test_where_a_plan_launches_no_wide_tiles_there_are_none(sequences: list[tuple[int, int]], gap: int, group: int) -> None:
    step = step_of(sequences, [gap] * len(sequences), 132)
    floats = Operand("bf16", (None, 8, group, 128)), Operand("bf16", (None, None, 2, 8, 128))
    call = Call("ts::attention", (*floats, *(Operand("i32", s) for s in ((None, 2), (None,), (None, None)))), SCALED)
    for plan in (attention(call, gpu("sm_90a")), attention(call, gpu("gfx942"))):
        numbers: dict[str, Any] = dict(plan.prepared[0].keywords)
        narrow, wide, _ = work(step, **numbers)[:3]
        newest = max(1, *(new for _, new in sequences))
        chosen = [v for v in plan.variants if v.tokens <= step.sizes["T"] and v.newest <= newest][-1]
        launched = {launch.constants["WIDE"] for launch in chosen.launches if launch.source.function == "attend"}
        assert {kind for kind, count in ((0, narrow), (1, wide)) if count} <= launched
