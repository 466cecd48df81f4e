"""Rooflines: bytes and operations against sums by hand, and what runs on devices achieved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tsc.cli import main
from tskernels.registry import Call, Operand
from tskernels.roofline import floor, work

LATENT, ROTATED, PAGE = 512, 64, 64


def latent_decode(sequences: int, heads: int, queries: int, length: int, cache: str) -> Call:
    rows, pages = sequences * queries, -(-length // PAGE)
    shapes = ((rows, heads, LATENT), (rows, heads, ROTATED), (sequences * pages, PAGE, LATENT + ROTATED))
    floats = tuple(Operand(dtype, shape) for dtype, shape in zip(("bf16", "bf16", cache), shapes, strict=True))
    step = (Operand("i32", (sequences, 2)), Operand("i32", (sequences,)), Operand("i32", (sequences, pages)))
    return Call("ts::latent_attention", (*floats, *step))


@pytest.mark.parametrize(("cache", "size"), [("bf16", 2), ("f8e4m3", 1)])
@pytest.mark.parametrize("sequences", [1, 16])
def test_latent_attention_reads_its_cache_once_for_all_heads(sequences: int, cache: str, size: int) -> None:
    length, rows = 81_920, 16 * 4 * sequences
    found = work(latent_decode(sequences, 16, 4, length, cache))
    assert found.bytes == sequences * length * 576 * size + rows * (512 + 64 + 512) * 2
    assert found.flops == 2 * rows * length * (576 + 512)
    assert floor(found, "b200").memory == found.bytes / 8.0e12
    assert floor(found, "b200").arithmetic == found.flops / (2.25e15 * 2 / size)


def test_many_rows_of_a_product_are_bound_by_arithmetic() -> None:
    few, many = (work(Call("ts::linear", (Operand("bf16", (n, 4096)), Operand("bf16", (4096, 4096))))) for n in (16, 4096))
    assert floor(few, "h100").bound == "memory"
    assert floor(many, "h100").bound == "arithmetic"
    assert many.flops == 2 * 4096**3


def test_runs_on_devices_are_shown_as_shares(tmp_path: Path) -> None:
    operands = ["bf16[16, 4096]", "bf16[4096, 4096]"]
    run = {"op": "ts::linear", "operands": operands, "kernel": "torch", "device": "H100", "date": "2026-01-02", "seconds": 20e-6}
    other = run | {"operands": ["bf16[8, 4096]", "bf16[4096, 4096]"], "kernel": "other"}
    (tmp_path / "kernels_h100.json").write_text(json.dumps([run, other]))
    shapes = [word for operand in operands for word in ("--shape", operand)]
    found = CliRunner().invoke(main, ["kernels", "roof", "linear", *shapes, "--results", str(tmp_path)], catch_exceptions=False)
    least = (2 * 16 * 4096 + 4096 * 4096) * 2 / 3.35e12
    [line] = [line for line in found.output.splitlines() if "run on" in line]
    assert line.split() == f"20.00 us torch, run on H100 2026-01-02: {least / 20e-6:.0%}".split()


def test_predictions_state_their_efficiency() -> None:
    words = ["kernels", "roof", "silu", "--shape", "bf16[4096,4096]", "--device", "b200", "--efficiency", "0.5", "--overhead-us", "3"]
    found = CliRunner().invoke(main, words, catch_exceptions=False).output
    least = 2 * 4096 * 4096 * 2 / 8e12 * 1e6
    assert f"{least / 0.5 + 3:.2f} us predicted, at 50% of that rate and 3 us beside" in found
