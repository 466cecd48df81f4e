"""What an artifact stores of weights in layouts: each rank's rows, packed, and a program that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.cli.conftest import Tsc
from tests.passes.made_up_kernels import MADE_UP, made_up_kernels

from tskernels.layouts import layout


def inputs(path: Path) -> dict[str, dict[str, Any]]:
    """By stored name, what the graphs say of weights."""
    program = json.loads((path / "program.json").read_text())
    found = {}
    for graph in program["graphs"].values():
        for given in graph["inputs"]:
            if given.get("tensor"):
                found[given["tensor"]] = given
        for node in graph["nodes"]:
            named = {given["name"]: given for given in program["graphs"][node["call"]]["inputs"]} if "call" in node else {}
            found |= {tensor: named[name] for name, tensor in node.get("weights", {}).items()}
    return found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_stored_weights_are_the_packed_rows_of_a_rank(ranks: int, dtype: str, workspace: Path, tsc: Tsc) -> None:
    options = ("--weights", "checkpoint", "--mesh", f"tp={ranks}", "--dtype", dtype)
    assert tsc("compile", *options, "--target", "cpu+", "-o", "rows.tsa")[0] == 0
    with made_up_kernels():
        code, output = tsc("compile", *options, "--target", str(MADE_UP), "-o", "packed.tsa")
    assert code == 0, output
    rows, packed = inputs(workspace / "rows.tsa"), inputs(workspace / "packed.tsa")
    assert {given.get("layout") for given in rows.values()} == {None}
    assert {given.get("layout") for given in packed.values()} == {None, "panels", "gated_panels"}
    for rank in range(ranks):
        file = f"weights/rank-{rank:05}.safetensors"
        one, other = load_file(workspace / "rows.tsa" / file), load_file(workspace / "packed.tsa" / file)
        assert set(one) == set(other) == set(packed)
        for name, given in packed.items():
            assert list(other[name].shape) == given["shape"]
            assert given["type"] == rows[name]["type"]
            unpack = layout(given.get("layout", "rows")).unpack
            assert unpack is not None
            assert torch.equal(unpack(other[name], one[name].shape), one[name])
