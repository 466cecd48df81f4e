"""`tsc compile --cache int8|fp8`: what the artifact says of its caches, what makes it another one, what is told where it can not be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Tsc
from tests.cli.tiny import LAYER, SHAPES, write_checkpoint

from tsrun.artifact import open_artifact
from tsrun.engine import Engine
from tsrun.generation import GenerationRequest
from tsrun.limits import LimitOptions

WIDE = {"q_proj": (128, 32), "k_proj": (32, 32), "v_proj": (32, 32), "o_proj": (32, 128)}
"""Weights of heads of 16 elements."""


def program(path: Path) -> Any:
    return json.loads((path / "program.json").read_text())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_cache_has_a_byte_an_element_and_int8_four_a_vector(ranks: int, workspace: Path, tsc: Tsc) -> None:
    found = {}
    for cache in ("dtype", "int8", "fp8"):
        code, output = tsc("compile", "checkpoint", "--mesh", f"tp={ranks}", "--cache", cache, "-o", f"{cache}.tsa")
        assert code == 0, output
        found[cache] = program(workspace / f"{cache}.tsa")
    heads = 2 // ranks  # of 4 elements
    assert found["dtype"]["caches"] == [{"dtype": "bf16", "page": [2, heads, 4], "window": 0}]
    assert found["int8"]["caches"] == [{"dtype": "u8", "page": [2 * heads * (4 + 4)], "window": 0, "layout": "int8_cache"}]
    assert found["fp8"]["caches"] == [{"dtype": "f8e4m3", "page": [2, heads, 4], "window": 0, "layout": "fp8_cache"}]
    _, output = tsc("inspect", "fp8.tsa")
    assert f"1 caches of f8e4m3 in fp8_cache: {2 * heads * 4} bytes a token" in output
    rows = cache_inputs(found["dtype"])
    for given, other, row in zip(cache_inputs(found["int8"]), cache_inputs(found["fp8"]), rows, strict=True):
        assert (given["dtype"], given["shape"], given["layout"]) == ("u8", ["pages", 2 * heads * (4 + 4)], "int8_cache")
        assert (other["dtype"], other["shape"], other["layout"]) == ("f8e4m3", ["pages", 2, heads, 4], "fp8_cache")
        assert given["type"] == other["type"] == row["type"], "what it means stays"


def cache_inputs(program: Any) -> list[dict[str, Any]]:
    found = [i for graph in program["graphs"].values() for i in graph["inputs"] if i["kind"] == "cache"]
    assert found
    return found


def test_what_a_cache_holds_is_of_its_own_kind(workspace: Path, tsc: Tsc) -> None:
    """Pages and keys are not to be taken for those of an artifact whose caches hold something else."""
    kinds = ("dtype", "int8", "fp8")
    artifacts = [open_artifact(compiled(workspace, tsc, cache)) for cache in kinds]
    assert [artifact.manifest.cache for artifact in artifacts] == [*kinds]
    assert len({artifact.namespace for artifact in artifacts}) == len(kinds)
    keys = [json.loads(tsc("compile", "checkpoint", "--cache", cache, "--key")[1]) for cache in kinds]
    assert {name for key in keys[1:] for name in key if key[name] != keys[0][name]} == {"cache"}


def compiled(workspace: Path, tsc: Tsc, cache: str, checkpoint: str = "checkpoint") -> Path:
    code, output = tsc("compile", checkpoint, "--cache", cache, "-o", f"{cache}.tsa")
    assert code == 0, output
    return workspace / f"{cache}.tsa"


def test_as_many_bytes_hold_more_tokens(workspace: Path, tsc: Tsc) -> None:
    write_checkpoint(workspace / "wide", SHAPES | {f"{LAYER}self_attn.{name}.weight": s for name, s in WIDE.items()}, head_dim=16)
    for cache, token_bytes in (("dtype", 2 * 2 * 16 * 2), ("int8", 2 * 2 * (16 + 4)), ("fp8", 2 * 2 * 16)):
        with Engine(compiled(workspace, tsc, cache, "wide"), LimitOptions(page_size=4, cache_bytes=4096)) as engine:
            assert engine.limits.num_pages == 4096 // (4 * token_bytes)
            engine.submit(GenerationRequest([1, 2, 3], 4, ignore_eos=True))
            assert sum(len(event.token_ids) for event in engine.events()) == 4


def test_heads_of_an_odd_width_are_refused(workspace: Path, tsc: Tsc) -> None:
    model = (workspace / "llama.ts").read_text()
    turned = re.compile(r"rope\((linear\(x, w[qk], b[qk]\)), [^)]*\)")  # rotates pairs
    assert len(turned.findall(model)) == 2
    (workspace / "odd.ts").write_text(turned.sub(r"\1", model))
    config = json.loads((workspace / "checkpoint" / "config.json").read_text()) | {"head_dim": 5}
    (workspace / "odd.json").write_text(json.dumps(config))
    code, output = tsc("compile", "odd.ts", "--config", "odd.json", "--cache", "int8", "-o", "odd.tsa")
    assert code == 1
    assert "error[TS0511]" in output
    assert "fix: compile with --cache fp8" in output
    assert not (workspace / "odd.tsa").exists()
    code, output = tsc("compile", "odd.ts", "--config", "odd.json", "--cache", "fp8", "-o", "odd.tsa")
    assert code == 0, output
