"""Binding and replaying: step shapes, arenas, table widths, coordinates and limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.runtime.toy import Toy, program_of, write_artifact

from tskernels.cache_pages import table_columns
from tsrun.artifact import open_artifact
from tsrun.block_tables import BlockTables
from tsrun.errors import ArtifactError, MachineError, RequestError
from tsrun.executor import Executor
from tsrun.limits import LimitOptions, Limits, memory_bytes, row_bytes, settle
from tsrun.program import read_program
from tsrun.step import Step

LIMITS = Limits(page_size=4, num_pages=64, max_sequences=4, max_step_tokens=40, max_context=96, windows=((12, 48),))


def executor(path: Path, rank: int = 0) -> Executor:
    return Executor(open_artifact(path), read_program(path / "program.json"), rank, LIMITS, threads=2)


def prefill(prompts: list[list[int]], pages_of: list[list[int]]) -> Step:
    """A step of whole prompts, each in pages of its own, which in the caches with a window are others. Sequence s has row 3 - s."""
    lengths = [len(prompt) for prompt in prompts]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    rows = [3 - s for s in range(len(prompts))]
    slots = [
        [(pages[i // 4] + shift) % modulus * 4 + i % 4 for n, pages in zip(lengths, pages_of, strict=True) for i in range(n)]
        for shift, modulus in ((0, 64), (17, 48))
    ]
    updates = [
        (group, row, index, (page + shift) % modulus)
        for group, (shift, modulus) in enumerate(((0, 64), (17, 48)))
        for row, pages in zip(rows, pages_of, strict=True)
        for index, page in enumerate(pages)
    ]
    return Step(
        ids=np.array([token for prompt in prompts for token in prompt], dtype=np.int32),
        positions=positions,
        slots=np.array(slots, dtype=np.int32),
        spans=np.stack((starts[:-1], starts[1:]), axis=1),
        lengths=np.array(lengths, dtype=np.int32),
        last=(starts[1:] - 1).astype(np.int32),
        keep=np.zeros(len(prompts), dtype=np.int32),
        table_rows=np.array(rows, dtype=np.int32),
        table_updates=np.array(updates, dtype=np.int32),
        copies=np.zeros((0, 3), dtype=np.int32),
    )


def test_steps_of_any_shape_give_the_logits_of_plain_torch(toy: Toy, toy_artifact: Path) -> None:
    run = executor(toy_artifact).run
    prompts = [[1, 2, 3], [7] * 30, [9], [4, 5]]
    pages = [[63], list(range(8)), [40], [41]]
    for chosen in ([0], [1, 2], [2], [0, 2, 3], [1], [0], [0, 2, 3]):
        logits = run(prefill([prompts[i] for i in chosen], [pages[i] for i in chosen])).numbers()
        for row, i in zip(logits, chosen, strict=True):
            torch.testing.assert_close(torch.from_numpy(row), toy.logits(prompts[i])[-1], rtol=1e-4, atol=1e-4)


def test_a_bound_shape_is_replayed_and_not_bound_again(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = executor(toy_artifact)
    step = prefill([[1, 2, 3]], [[0]])
    subject.run(step)
    monkeypatch.setattr("tsrun.torch_program.TorchPrograms._bind", None)
    subject.run(step)


def test_tables_are_bound_with_few_widths() -> None:
    assert [table_columns(P) for P in (1, 8, 9, 16, 17, 1000)] == [8, 8, 16, 16, 32, 1024]


def test_of_several_changes_of_a_table_entry_the_last_stays() -> None:
    tables = BlockTables(num_groups=2, num_rows=3, num_columns=4)
    tables.apply(np.array([(1, 2, 0, 7), (1, 2, 1, 8), (0, 2, 0, 5), (1, 2, 0, 9)], dtype=np.int32))
    tables.apply(np.zeros((0, 4), dtype=np.int32))
    out = np.full((2, 3), -1, dtype=np.int32)
    tables.copy_rows(1, np.array([2, 0], dtype=np.int32), out)
    assert out.tolist() == [[9, 8, 0], [0, 0, 0]]


def test_a_kernel_that_a_program_places_beyond_its_frame_is_refused(toy: Toy, tmp_path: Path) -> None:
    program = program_of(toy, 1)
    program["plans"][0]["frame"]["T"] -= 64
    path = write_artifact(toy, tmp_path / "bad.tsa", program=program)
    with pytest.raises(ArtifactError, match="outside of the frame"):
        executor(path)


def test_an_axis_that_the_mesh_lacks_is_refused(toy: Toy, tmp_path: Path) -> None:
    program = program_of(toy, 2)
    for given in program["graphs"]["decode"]["inputs"]:
        if given["kind"] == "coordinate":
            given["axis"] = "tp*ep"
    path = write_artifact(toy, tmp_path / "bad.tsa", ranks=2, program=program)
    with pytest.raises(ArtifactError, match=r"program.json: axis `tp\*ep`"):
        executor(path)


def test_a_quarter_of_memory_or_every_sequence_at_its_longest_bounds_the_cache() -> None:
    small = settle(LimitOptions(max_sequences=3), context=100, row_bytes={0: 8}, ranks=1)
    assert (small.num_pages, small.max_context) == (3 * 7, 100)
    large = settle(LimitOptions(), context=None, row_bytes={0: 1 << 20}, ranks=2)
    assert large.num_pages == memory_bytes() // 8 // (16 << 20)
    assert large.max_context == large.num_pages * 16


def test_limits_that_are_asked_for_are_kept() -> None:
    limits = settle(LimitOptions(page_size=8, num_pages=5, max_context=30), context=1000, row_bytes={0: 8}, ranks=1)
    assert (limits.page_size, limits.num_pages, limits.max_context) == (8, 5, 30)
    assert settle(LimitOptions(cache_bytes=1024), context=10_000, row_bytes={0: 8}, ranks=1).num_pages == 8
    guessing = LimitOptions(cache_bytes=1024, max_sequences=2, speculate="mtp")
    assert [settle(o, context=10_000, row_bytes={0: 8}, ranks=1).num_pages for o in (guessing, replace(guessing, branches=1))] == [6, 4]


def test_a_cache_that_holds_no_page_is_refused() -> None:
    with pytest.raises(MachineError, match="holds no page of 16 tokens, which takes 128 bytes"):
        settle(LimitOptions(cache_bytes=127), context=100, row_bytes={0: 8}, ranks=1)
    with pytest.raises(RequestError, match="max-sequences: got 0"):
        LimitOptions(max_sequences=0)


def test_a_window_has_the_pages_that_it_can_ever_need_and_no_more() -> None:
    """Of 8 sequences each has 512 tokens and two steps of 64 between them, in pages of 16; as much again is for prompts to be found."""
    wishes = LimitOptions(max_sequences=8, max_step_tokens=64, num_pages=10_000)
    limits = settle(wishes, context=100_000, row_bytes={0: 8, 512: 8}, ranks=1)
    assert limits.pages == {0: 10_000, 512: 2 * (8 * (512 // 16 + 2) + 2 * 4)}
    one_at_a_time = settle(replace(wishes, depth=1), context=100_000, row_bytes={0: 8, 512: 8}, ranks=1)
    assert one_at_a_time.pages[512] == 2 * (8 * 34 + 4)
    # No more than there are pages without a window; and what the scheduler wants for one sequence, even so.
    assert settle(replace(wishes, num_pages=100), context=100_000, row_bytes={0: 8, 512: 8}, ranks=1).pages == {0: 100, 512: 100}
    assert settle(replace(wishes, num_pages=10), context=100_000, row_bytes={0: 8, 512: 8}, ranks=1).pages == {0: 10, 512: 12}


def test_the_bytes_of_windows_count() -> None:
    """Where four of five layers have a window, the cache holds far longer contexts in the same memory."""
    wishes = LimitOptions(max_sequences=2, max_step_tokens=16, cache_bytes=1_000_000)
    without = settle(wishes, context=1 << 20, row_bytes={0: 80}, ranks=1)
    limits = settle(wishes, context=1 << 20, row_bytes={0: 16, 64: 32, 32: 32}, ranks=1)
    assert list(limits.pages) == [0, 32, 64]
    rows = 16 * limits.pages[0] + 32 * limits.pages[32] + 32 * limits.pages[64]
    assert 1_000_000 - 16 * 16 < rows * 16 <= 1_000_000
    assert limits.max_context > 4 * without.max_context


def test_a_model_whose_caches_all_have_windows_reaches_its_context() -> None:
    limits = settle(LimitOptions(max_sequences=2, max_step_tokens=16, cache_bytes=100_000), context=1 << 16, row_bytes={64: 32}, ranks=1)
    assert limits.max_context == 1 << 16
    assert limits.pages == {0: 2 * (1 << 16) // 16, 64: 2 * (2 * 6 + 2)}


def test_a_cache_row_counts_its_element_type() -> None:
    caches = [("f32", (2, 3, 64), 0), ("bf16", (2, 3, 64), 0), ("f32", (2, 1, 8), 512), ("f32", (2, 1, 8), 512)]
    assert row_bytes(caches) == {0: 2 * 3 * 64 * 6, 512: 2 * 2 * 8 * 4}
