"""Latent attention in CUDA C++: the host's list of work, its plans, and its machine code where nvcc is."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

from tskernels.gpu.compile import compile_functions
from tskernels.gpu.functions import function_of
from tskernels.gpu.latent_splits import FIELDS, OVERHEAD, ROWS, TOKENS, Item, cut, encode, most_numbers, plan_splits, prepare
from tskernels.gpu.launch import StepShape, TensorMap
from tskernels.gpu.mla_cuda import mla_decode_sm100
from tskernels.gpu.sizes import Expression, of_operands, value
from tskernels.registry import Call, Operand, select
from tskernels.target import gpu

Spans = list[tuple[int, int]]


def steps(count: int) -> list[tuple[Spans, list[int], int, int, int]]:
    """Spans, lengths, heads, tokens and blocks of steps of all kinds: rows of no sequence, sequences of no rows, one and many."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        spans: Spans = []
        lengths: list[int] = []
        at = 0
        for _ in range(draw.choice([1, 2, 5, 40])):
            new = draw.choice([0, 1, 1, 1, 2, 4, 7, 40])
            at += draw.choice([0, 0, 0, 3])
            spans.append((at, at + new))
            lengths.append(new + draw.choice([0, 1, 63, 64, 100, 5000]) if new else draw.choice([0, 17]))
            at += new
        found.append((spans, lengths, draw.choice([1, 12, 16, 64, 128]), at + draw.choice([0, 5]), draw.choice([1, 3, 132, 148])))
    return found


STEPS = steps(40)


def all_items(work: list[list[Item]]) -> list[Item]:
    return [item for block in work for item in block]


def test_every_row_sees_each_of_its_keys_once() -> None:
    for spans, lengths, heads, tokens, blocks in STEPS:
        rows = np.zeros(tokens * heads, int)
        ranges: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for item in all_items(plan_splits(spans, lengths, heads, tokens, blocks)):
            if item.split == 0:
                rows[item.first_row : item.first_row + item.rows] += 1
            ranges.setdefault((item.first_row, item.rows), []).append((item.first_tile, item.last_tile))
        assert np.all(rows == 1)
        keys = np.zeros(tokens * heads, int)  # that the newest row of the same row tile sees
        for (first, last), length in zip(spans, lengths, strict=True):
            for row in range((last - first) * heads):
                newest = min((row // ROWS + 1) * ROWS, (last - first) * heads) - 1
                keys[first * heads + row] = length - (last - first) + newest // heads + 1
        for (first_row, count), found in ranges.items():
            assert len(set(keys[first_row : first_row + count])) == 1
            found.sort()
            assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
            assert found[-1][1] == -(-keys[first_row] // TOKENS)


def test_items_say_what_their_rows_may_see() -> None:
    for spans, lengths, heads, tokens, blocks in STEPS:
        for item in all_items(plan_splits(spans, lengths, heads, tokens, blocks)):
            if item.last_tile > item.first_tile:
                first, last = spans[item.sequence]
                assert (item.first_row - first * heads, item.length) == (item.offset, lengths[item.sequence])
                assert item.cached == lengths[item.sequence] - (last - first)


def test_splits_of_a_row_tile_are_all_there_and_have_places_of_their_own() -> None:
    for spans, lengths, heads, tokens, blocks in STEPS:
        parts = [item for item in all_items(plan_splits(spans, lengths, heads, tokens, blocks)) if item.splits > 1]
        places = [item.partial + item.split for item in parts]
        assert sorted(places) == list(range(len(parts)))
        assert len(parts) <= 2 * blocks
        groups: dict[int, list[Item]] = {}
        for item in parts:
            groups.setdefault(item.counter, []).append(item)
        assert sorted(groups) == list(range(len(groups)))
        for group in groups.values():
            assert sorted(item.split for item in group) == list(range(group[0].splits))
            assert len({(item.first_row, item.partial) for item in group}) == 1


def test_a_block_has_at_most_one_split_of_a_row_tile() -> None:
    """It waits for the others' only when it has done its own."""
    for spans, lengths, heads, tokens, blocks in STEPS:
        for items in plan_splits(spans, lengths, heads, tokens, blocks):
            counters = [item.counter for item in items if item.splits > 1]
            assert len(counters) == len(set(counters))


def test_cuts_are_as_even_as_whole_tiles_allow() -> None:
    draw = random.Random(1)
    for _ in range(200):
        tiles = [draw.choice([0, 1, 2, 30, 700]) for _ in range(draw.choice([1, 3, 50]))]
        parts = draw.choice([1, 2, 33, 132])
        stretches = cut(tiles, parts, OVERHEAD)
        assert len(stretches) <= parts
        loads = [sum(s.last_tile - s.first_tile + OVERHEAD for s in found) for found in stretches]
        assert sum(s.last_tile - s.first_tile for found in stretches for s in found) == sum(tiles)
        cuts = sum(map(len, stretches)) - sum(count > 0 for count in tiles)
        assert max(loads) <= -(-(sum(loads)) // parts) + OVERHEAD + 1, (tiles, parts, cuts)


def test_one_long_sequence_uses_every_block_that_saves_a_tile() -> None:
    work = plan_splits([(0, 4)], [80 * 1024], 16, 4, 132)
    assert [len(items) for items in work] == [1] * 128 + [0] * 4
    assert {item.last_tile - item.first_tile for item in all_items(work)} == {10}


def test_a_list_of_work_fits_the_room_for_it() -> None:
    for spans, lengths, heads, tokens, blocks in STEPS:
        sizes = {"T": tokens, "S": len(spans), "P": 1, "SMS": blocks}
        made = prepare(StepShape(np.array(spans, np.int32), np.array(lengths, np.int32), sizes), heads=heads)
        assert made.dtype == np.int32
        assert len(made) <= value(most_numbers(heads), sizes)
        work = plan_splits(spans, lengths, heads, tokens, blocks)
        begins = made[: blocks + 1]
        start = (blocks + 4) // 4 * 4
        assert list(np.diff(begins)) == [len(items) for items in work]
        assert made.tolist() == encode(work)
        assert len(made) == start + FIELDS * begins[-1]


def call(window: int = 0) -> Call:
    shapes = ((None, 16, 512), (None, 16, 64), (None, None, 576))
    operands = [Operand("bf16", shape, "rows") for shape in shapes]
    operands += [Operand("i32", shape, "rows") for shape in ((None, 2), (None,), (None, None))]
    return Call("ts::latent_attention", tuple(operands), {"shard": 0, "scale": 0.1, "window": window})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc, which compiles these kernels, is not on the PATH")
@pytest.mark.parametrize(("target", "name"), [("sm_90a", "cuda"), ("sm_100a", "cuda_tcgen05")])
def test_where_nvcc_is_the_tuned_kernel_is_chosen_and_spills_nothing(target: str, name: str) -> None:
    kernel = select(call(), gpu(target))
    assert kernel.name == name
    assert kernel.plan is not None
    plan = kernel.plan(call(), gpu(target))
    machine = compile_functions([function_of(plan.variants[0].launches[0])], gpu(target))[0]
    assert machine.resources.stack == 0
    assert machine.resources.shared <= 232448


def test_a_window_is_left_to_others() -> None:
    assert not select(call(window=128), gpu("sm_90a")).name.startswith("cuda")


@pytest.mark.parametrize(("page", "box"), [(64, (64, 64, 9)), (128, (64, 64, 9)), (32, (64, 32, 1)), (48, (64, 16, 1))])
def test_boxes_are_of_rows_that_divide_pages_and_tiles(page: int, box: tuple[int, ...]) -> None:
    assert settled("cache", page=page) == ((64, 10 * page, 9), (1152, 128), box)


def test_queries_that_are_not_rows_of_one_distance_are_refused() -> None:
    """A map of no rows is an error of the driver."""
    assert settled("queries") == ((64, 3 * 16, 8), (1024, 128), (64, 64, 8))
    assert settled("queries", token=16 * 512 + 64) == ((64, 0, 8), (1024, 128), (64, 64, 8))
    assert settled("queries", token=512) == ((64, 0, 8), (1024, 128), (64, 64, 8))


def settled(name: str, page: int = 64, token: int = 16 * 512) -> tuple[tuple[int, ...], ...]:
    """Sizes, strides and box of a map: of 3 tokens and 10 pages; token: elements from a token's queries to the next's."""
    argument = mla_decode_sm100(call(), gpu("sm_100a")).variants[0].launches[0].arguments[name]
    assert isinstance(argument, TensorMap)
    shapes = [(3, 16, 512), (3, 16, 64), (10, page, 576)]
    strides = [(token, 512, 1), (16 * 64, 64, 1), (page * 576, 576, 1)]

    def numbers(sizes: tuple[int | Expression, ...]) -> tuple[int, ...]:
        return tuple(value(of_operands(size, shapes, strides), {}) for size in sizes)

    return numbers(argument.sizes), numbers(argument.strides), numbers(argument.box)
