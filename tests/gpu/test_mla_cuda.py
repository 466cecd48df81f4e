"""Latent attention in CUDA C++: the host's list of work, its plans, and its machine code where nvcc is."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.gpu.latent_cuda import FOLDER
from tests.gpu.machine_code import read_cubin

from tskernels.gpu.compile import compile_functions
from tskernels.gpu.functions import function_of
from tskernels.gpu.latent_splits import FIELDS, OVERHEAD, ROWS, TOKENS, Item, cut, encode, most_numbers, plan_splits, prepare
from tskernels.gpu.launch import CudaSource, PreparedInput, StepShape, TensorMap
from tskernels.gpu.mla_cuda import mla_decode_sm90, mla_decode_sm100
from tskernels.gpu.sizes import Expression, of_operands, value
from tskernels.registry import Call, Operand, select
from tskernels.target import gpu

Spans = list[tuple[int, int]]
Step = tuple[Spans, list[int], int, int, int]


def steps(count: int) -> list[Step]:
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
TOGETHER = pytest.mark.parametrize("together", [1, 2])


def lists(together: int) -> Iterator[tuple[Step, list[list[Item]]]]:
    """Steps, and the work of their blocks."""
    for spans, lengths, heads, tokens, blocks in STEPS:
        if together <= blocks:
            given = spans, lengths, heads, tokens, blocks // together * together
            yield given, plan_splits(*given, together=together)


def all_items(work: list[list[Item]]) -> list[Item]:
    return [item for block in work for item in block]


@TOGETHER
def test_every_row_sees_each_of_its_keys_once(together: int) -> None:
    for (spans, lengths, heads, tokens, _), work in lists(together):
        rows = np.zeros(tokens * heads, int)
        ranges: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for item in all_items(work):
            if item.rows == 0:  # of a block whose partner alone has rows
                continue
            if item.split == 0:
                rows[item.first_row : item.first_row + item.rows] += 1
            ranges.setdefault((item.first_row, item.rows), []).append((item.first_tile, item.last_tile))
        assert np.all(rows == 1)
        keys = np.zeros(tokens * heads, int)  # that the newest row of the same row tiles sees
        for (first, last), length in zip(spans, lengths, strict=True):
            for row in range((last - first) * heads):
                newest = min((row // (ROWS * together) + 1) * ROWS * together, (last - first) * heads) - 1
                keys[first * heads + row] = length - (last - first) + newest // heads + 1
        for (first_row, count), found in ranges.items():
            assert len(set(keys[first_row : first_row + count])) == 1
            found.sort()
            assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
            assert found[-1][1] == -(-keys[first_row] // TOKENS)


@TOGETHER
def test_items_say_what_their_rows_may_see(together: int) -> None:
    for (spans, lengths, heads, _, _), work in lists(together):
        for item in all_items(work):
            if item.last_tile > item.first_tile:
                first, last = spans[item.sequence]
                assert (item.first_row - first * heads, item.length) == (item.offset, lengths[item.sequence])
                assert item.cached == lengths[item.sequence] - (last - first)


@TOGETHER
def test_splits_of_a_row_tile_are_all_there_and_have_places_of_their_own(together: int) -> None:
    for (_, _, _, _, blocks), work in lists(together):
        parts = [item for item in all_items(work) if item.splits > 1]
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


@TOGETHER
def test_a_block_has_at_most_one_split_of_a_row_tile(together: int) -> None:
    """It waits for the others' only when it has done its own."""
    for _, work in lists(together):
        for items in work:
            counters = [item.counter for item in items if item.splits > 1]
            assert len(counters) == len(set(counters))


def test_blocks_of_a_pair_have_neighbouring_row_tiles_of_the_same_keys_in_the_same_order() -> None:
    for _, work in lists(2):
        for leader, other in zip(work[::2], work[1::2], strict=True):
            of_leader, of_other = ([i for i in items if i.first_tile < i.last_tile] for items in (leader, other))
            for a, b in zip(of_leader, of_other, strict=True):
                assert (a.sequence, a.first_tile, a.last_tile) == (b.sequence, b.first_tile, b.last_tile)
                assert (a.length, a.cached, b.first_row - a.first_row, b.offset - a.offset) == (b.length, b.cached, ROWS, ROWS)
                assert a.offset % (2 * ROWS) == 0
                assert b.rows <= a.rows


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


@TOGETHER
def test_a_list_of_work_fits_the_room_for_it(together: int) -> None:
    for (spans, lengths, heads, tokens, blocks), work in lists(together):
        sizes = {"T": tokens, "S": len(spans), "P": 1, "SMS": blocks + together - 1}
        made = prepare(StepShape(spans, lengths, sizes), heads=heads, together=together)
        assert made.dtype == np.int32
        assert len(made) <= value(most_numbers(heads, together), sizes)
        begins = made[: blocks + 1]
        start = (blocks + 4) // 4 * 4
        assert list(np.diff(begins)) == [len(items) for items in work]
        assert made.tolist() == encode(work)
        assert len(made) == start + FIELDS * begins[-1]


def test_sequences_that_are_expanded_get_zeros() -> None:
    spans, lengths = [(0, 1), (1, 201)], [500, 900]
    made = prepare(StepShape(spans, lengths, {"T": 201, "S": 2, "P": 20, "SMS": 8}), heads=16, expanded_from=171)
    alone = prepare(StepShape([(0, 1), (0, 0)], lengths, {"T": 201, "S": 2, "P": 20, "SMS": 8}), heads=16)
    assert made.tolist() == alone.tolist()


def call(window: int = 0, heads: int = 16, cache: str = "rows") -> Call:
    operands = [Operand("bf16", (None, heads, 512)), Operand("bf16", (None, heads, 64)), Operand("bf16", (None, None, 576), cache)]
    operands += [Operand("i32", shape, "rows") for shape in ((None, 2), (None,), (None, None))]
    return Call("ts::latent_attention", tuple(operands), {"shard": 0, "scale": 0.1, "window": window})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc, which compiles these kernels, is not on the PATH")
@pytest.mark.parametrize("cache", ["rows", "fp8_cache"])
@pytest.mark.parametrize(("target", "name"), [("sm_90a", "cuda"), ("sm_100a", "cuda_tcgen05"), ("sm_103a", "cuda_tcgen05")])
def test_where_nvcc_is_the_tuned_kernel_is_chosen_and_its_machine_code_spills_nothing(target: str, cache: str, name: str) -> None:
    pytest.importorskip("triton", reason="needs Triton's disassembler: pip install tsc-llm[triton]")
    kernel = select(call(cache=cache), gpu(target))
    assert kernel.name == (name if cache == "rows" else f"{name}_{cache}")
    assert kernel.plan is not None
    plan = kernel.plan(call(cache=cache), gpu(target))
    assert len(plan.variants) == (1 if cache == "fp8_cache" else 2)  # another kernel for more than 64 rows
    for machine in compile_functions([function_of(v.launches[0]) for v in plan.variants], gpu(target)):
        words, _ = read_cubin(machine.code)
        assert machine.resources.stack == 0
        assert machine.resources.shared <= 232448
        assert machine.resources.tensor_columns == (0 if target == "sm_90a" else 512)
        assert not [word for word in words if word.startswith(("LDL", "STL"))]
        assert words["HGMMA" if target == "sm_90a" else "UTCHMMA"] >= 16
        assert words.total() > 200


def test_a_window_is_left_to_others() -> None:
    assert not select(call(window=128), gpu("sm_90a")).name.startswith("cuda")


@pytest.mark.parametrize(("page", "box"), [(64, (64, 64, 9)), (128, (64, 64, 9)), (32, (64, 32, 1)), (48, (64, 16, 1))])
def test_boxes_are_of_rows_that_divide_pages_and_tiles(page: int, box: tuple[int, ...]) -> None:
    assert settled("cache", page=page) == ((64, 10 * page, 9), (1152, 128), box)


@pytest.mark.parametrize(
    ("page", "keys", "values"), [(64, (64, 32, 9), (64, 64, 4)), (32, (64, 32, 9), (64, 32, 1)), (16, (64, 16, 1), (64, 16, 1))]
)
def test_a_pair_loads_half_of_the_tokens_as_keys_and_half_of_the_columns_as_values(
    page: int, keys: tuple[int, ...], values: tuple[int, ...]
) -> None:
    sizes = (64, 10 * page, 9), (1152, 128)
    assert settled("keys", page=page, variant=1) == (*sizes, keys)
    assert settled("values", page=page, variant=1) == (*sizes, values)


@pytest.mark.parametrize(("heads", "newest"), [(16, [1, 5]), (32, [1, 3]), (48, [1, 2]), (64, [1, 2]), (128, [1])])
def test_pairs_of_blocks_run_steps_with_more_rows_of_a_sequence_than_one_multiplies(heads: int, newest: list[int]) -> None:
    plan = mla_decode_sm100(call(heads=heads), gpu("sm_100a"))
    assert [v.newest for v in plan.variants] == newest
    assert [v.launches[0].cluster for v in plan.variants] == ([1, 2] if len(newest) == 2 else [2])
    lists = [next(a.name for a in v.launches[0].arguments.values() if isinstance(a, PreparedInput)) for v in plan.variants]
    assert lists == [p.name for p in plan.prepared]


@pytest.mark.parametrize(("heads", "kernels"), [(16, {1: "mla_decode", 5: "mla_decode_gangs"}), (128, {1: "mla_decode_gangs"})])
def test_on_hopper_sequences_of_more_rows_than_one_block_multiplies_have_a_kernel_of_their_own(heads: int, kernels: dict[int, str]) -> None:
    plan = mla_decode_sm90(call(heads=heads), gpu("sm_90a"))
    assert {v.newest: v.launches[0].source.function for v in plan.variants if isinstance(v.launches[0].source, CudaSource)} == kernels
    assert [p.name for p in plan.prepared] == ["work"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc, which compiles these kernels, is not on the PATH")
@pytest.mark.slow
@pytest.mark.parametrize(("file", "fp8"), [("mla_decode_sm90.cu", 0), ("mla_decode_sm90.cu", 1), ("mla_decode_sm90_gangs.cu", 0)])
def test_products_are_under_way_while_weights_are_made(file: str, fp8: int, tmp_path: Path) -> None:
    """The assembler says where it waits for products of its own accord: a small change of the loops is enough for that."""
    command = ["nvcc", "-std=c++20", "-O3", "-cubin", f"-DFP8_CACHE={fp8}", "-gencode", "arch=compute_90a,code=sm_90a", "-Xptxas", "-v"]
    said = subprocess.run([*command, FOLDER / file, "-o", tmp_path / "cubin"], check=True, capture_output=True, text=True).stderr
    assert "registers" in said
    assert "serialized" not in said
    assert "wait is injected" not in said


def test_queries_that_are_not_rows_of_one_distance_are_refused() -> None:
    """A map of no rows is an error of the driver."""
    assert settled("queries") == ((64, 3 * 16, 8), (1024, 128), (64, 64, 8))
    assert settled("queries", token=16 * 512 + 64) == ((64, 0, 8), (1024, 128), (64, 64, 8))
    assert settled("queries", token=512) == ((64, 0, 8), (1024, 128), (64, 64, 8))


def settled(name: str, page: int = 64, token: int = 16 * 512, variant: int = 0) -> tuple[tuple[int, ...], ...]:
    """Sizes, strides and box of a map: of 3 tokens and 10 pages; token: elements from a token's queries to the next's."""
    argument = mla_decode_sm100(call(), gpu("sm_100a")).variants[variant].launches[0].arguments[name]
    assert isinstance(argument, TensorMap)
    shapes = [(3, 16, 512), (3, 16, 64), (10, page, 576)]
    strides = [(token, 512, 1), (16 * 64, 64, 1), (page * 576, 576, 1)]

    def numbers(sizes: tuple[int | Expression, ...]) -> tuple[int, ...]:
        return tuple(value(of_operands(size, shapes, strides), {}) for size in sizes)

    return numbers(argument.sizes), numbers(argument.strides), numbers(argument.box)
