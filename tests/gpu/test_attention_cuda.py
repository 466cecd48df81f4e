"""Attention of many rows in CUDA C++: its plans, the lists of work that they have, and its machine code where nvcc is."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gpu.attention_cuda import FOLDER, call_of, ptx_of, wide_launch
from tests.gpu.machine_code import read_cubin

from tskernels.gpu.attention_cuda import KEYS, attention_sm90
from tskernels.gpu.launch import CudaSource, StepShape, TensorMap
from tskernels.gpu.sizes import of_operands, value
from tskernels.gpu.splits import RECORD, work
from tskernels.registry import Call, lookup, select
from tskernels.target import gpu
from tskernels.toolchain import missing

few = settings(deadline=None, max_examples=40)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc, which compiles this kernel, is not on the PATH")


def is_taken(call: Call) -> bool:
    when = lookup("ts::attention", "cuda").when
    assert when is not None
    return when(call)


def test_what_the_kernel_takes() -> None:
    assert all(is_taken(call_of(8, group, width)) for group in (1, 4, 7, 128) for width in (64, 128))
    assert not any(is_taken(call_of(*shape)) for shape in ((8, 4, 96), (8, 4, 256), (1, 129, 128)))
    call = call_of(8, 4, 128)
    assert not is_taken(replace(call, attributes={**call.attributes, "window": 4096}))
    assert not is_taken(replace(call, attributes={**call.attributes, "softcap": 50.0}))
    assert not is_taken(replace(call, operands=(*(replace(o, dtype="f16") for o in call.operands[:2]), *call.operands[2:])))


@pytest.mark.skipif(any(missing(compiler) for compiler in ("nvcc", "triton")), reason="needs nvcc and Triton")
def test_it_is_chosen_where_both_compilers_are() -> None:
    call = call_of(8, 4, 128)
    assert select(call, gpu("sm_90a")).name == "cuda"
    assert select(call, gpu("sm_100a")).name == "triton"
    cached = replace(call, operands=(call.operands[0], replace(call.operands[1], layout="fp8_cache"), *call.operands[2:]))
    assert select(cached, gpu("sm_90a")).name == "triton_fp8_cache"


@pytest.mark.parametrize("missed", ["nvcc", "triton"])
def test_without_one_of_its_compilers_it_is_not_chosen(missed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tskernels.registry.missing", lambda compiler: "is not here" if compiler == missed else None)
    assert select(call_of(8, 4, 128), gpu("sm_90a")).name == ("triton" if missed == "nvcc" else "reference")


def test_only_wide_tiles_are_for_cuda() -> None:
    few_tokens, many = attention_sm90(call_of(8, 4, 128), gpu("sm_90a")).variants
    assert not any(isinstance(launch.source, CudaSource) for launch in few_tokens.launches)
    assert [launch.source.function for launch in many.launches] == ["attend", "attend", "combine"]
    assert [isinstance(launch.source, CudaSource) for launch in many.launches] == [False, True, False]
    assert all(launch.dependent for launch in many.launches)
    # A token of 48 rows is no narrow tile; those of five tokens are none, where a head of keys has four others.
    assert (few_tokens.newest, many.newest) == (1, 5)
    assert len(attention_sm90(call_of(1, 48, 128), gpu("sm_90a")).variants[-1].launches) == 2


@pytest.mark.parametrize("group", [1, 3, 7, 12, 100])
def test_parts_of_all_rows_are_combined_some_at_a_time_as_triton_counts(group: int) -> None:
    shapes = [[4096, 1, group, 128]]
    plan = attention_sm90(call_of(1, group, 128), gpu("sm_90a"))
    for variant, most in zip(plan.variants, (16, 128 // group * group), strict=True):
        combining = variant.launches[-1]
        rows, blocks = int(combining.constants["ROWS"]), value(of_operands(combining.grid[2], shapes, shapes), {})
        assert rows & (rows - 1) == 0
        assert rows * blocks >= most


@few
@given(
    sequences=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), min_size=1, max_size=6),
    heads=st.sampled_from([1, 2, 8]),
    group=st.sampled_from([1, 3, 4, 7, 48]),
    multiprocessors=st.sampled_from([1, 8, 132]),
)
def test_tiles_are_whole_tokens_and_splits_are_whole_tiles_of_keys(
    sequences: list[tuple[int, int]], heads: int, group: int, multiprocessors: int
) -> None:
    plan = attention_sm90(call_of(heads, group, 128), gpu("sm_90a"))
    ends = [sum(new for _, new in sequences[: i + 1]) for i in range(len(sequences))]
    spans = [(end - new, end) for end, (_, new) in zip(ends, sequences, strict=True)]
    sizes = {"T": ends[-1] + 3, "S": len(spans), "P": 9, "SMS": multiprocessors}
    [listed] = plan.prepared
    numbers: dict[str, Any] = dict(listed.keywords)
    made = work(StepShape(spans, [sum(s) for s in sequences], sizes), **numbers)
    shapes = [[sizes["T"], heads, group, 128], [9, 64, 2, heads, 128], [sizes["S"], 2], [sizes["S"]], [sizes["S"], 9]]

    def number(given: Any) -> int:
        return value(of_operands(given, shapes, shapes), sizes)

    assert len(made) <= number(listed.capacity)
    records = made.reshape(-1, RECORD)
    narrow, wide = records[0, :2].tolist()
    partials = number(next(space.bytes for space in plan.scratch if space.name == "logs")) // 4 // heads // (128 // group * group)
    for _, _, row, rows, position, begin, end, partial in records[1 + narrow : 1 + narrow + wide].tolist():
        assert row % group == 0
        assert rows <= 128 // group * group
        assert begin % KEYS == 0
        assert end % KEYS == 0 or end == position + (row + rows - 1) // group + 1
        assert partial < partials


@pytest.mark.parametrize(("page", "tokens"), [(16, 16), (64, 64), (128, 128), (256, 128), (48, 16)])
def test_boxes_of_the_cache_divide_pages_and_tiles(page: int, tokens: int) -> None:
    assert settled("cache", page) == ((64, 10 * page, 32), (4096, 128), (64, tokens, 1))


def test_boxes_of_queries_are_the_rows_of_whole_tokens() -> None:
    assert settled("queries", 64) == ((64, 4, 3, 2, 8), (256, 12288, 128, 1024), (64, 4, 32, 1, 1))


def settled(name: str, page: int) -> tuple[tuple[int, ...], ...]:
    """Sizes, strides and box of a map: of 3 tokens, whose queries lie 6,144 elements apart, and 10 pages."""
    argument = wide_launch(attention_sm90(call_of(8, 4, 128), gpu("sm_90a"))).arguments[name]
    assert isinstance(argument, TensorMap)
    shapes = [(3, 8, 4, 128), (10, page, 2, 8, 128)]
    strides = [(6144, 512, 128, 1), (page * 2048, 2048, 1024, 128, 1)]

    def numbers(sizes: Any) -> tuple[int, ...]:
        return tuple(value(of_operands(size, shapes, strides), {}) for size in sizes)

    return numbers(argument.sizes), numbers(argument.strides), numbers(argument.box)


@needs_nvcc
def test_it_touches_no_memory_before_the_launches_before_have_ended() -> None:
    launch = wide_launch(attention_sm90(call_of(8, 4, 128), gpu("sm_90a")))
    assert launch.dependent
    before, wait, _ = ptx_of(8, 4, 128).partition("griddepcontrol.wait")
    assert wait
    assert not re.search(r"^\s*(?:@\S+\s+)?(?:ret|exit)\b|\b(?:ld|st|atom|red|cp)\S*\.global", before, re.M)


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("shape", [(8, 4, 128), (4, 7, 128), (8, 8, 64)])
def test_its_machine_code_spills_nothing_and_waits_for_no_product_too_early(shape: tuple[int, int, int], tmp_path: Path) -> None:
    """Products of which the assembler does not see when their registers are free it makes wait for each other, and only says so."""
    pytest.importorskip("triton", reason="needs Triton's disassembler: pip install tsc-llm[triton]")
    constants = [f"-D{name}={n}" for name, n in zip(("HEADS", "GROUP", "WIDTH"), shape, strict=True)]
    command = ["nvcc", "-std=c++20", "-O3", "-cubin", "-gencode=arch=compute_90a,code=sm_90a", "--resource-usage", *constants]
    out = tmp_path / "code.cubin"
    done = subprocess.run([*command, "-o", str(out), str(FOLDER / "attention_sm90.cu")], capture_output=True, text=True, check=True)
    assert "serialized" not in done.stderr
    assert " 0 bytes stack frame, 0 bytes spill stores" in done.stderr
    words, _ = read_cubin(out.read_bytes())
    assert not [word for word in words if word.startswith(("LDL", "STL"))]
    assert words["HGMMA"] == 2 * (shape[2] // 16) + 2 * 8
    assert words["MUFU"] >= 2 * 64
