"""`tsc compile --importance`: what is rounded by it, what is recorded, and what is told where it can not be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.cli.conftest import Tsc
from tests.cli.importance_files import INPUTS, write_importance
from tests.cli.test_layouts import inputs
from tests.cli.tiny import LAYER, SHAPES, write_checkpoint

from tsc.checkpoint import open_checkpoint
from tskernels.layouts import layout
from tskernels.simd import is_available
from tsrun.artifact import open_artifact

pytestmark = pytest.mark.skipif(not is_available(), reason="the C++ kernels are not built, or not for this processor")

DOWN = LAYER + "mlp.down_proj.weight"
FILE = Path("tiny.importance.safetensors")
INT4 = ("compile", "--weights", "checkpoint", "--quantize", "int4")


def values(path: Path, name: str, rank: int = 0) -> torch.Tensor:
    """What the kernels compute with, of a weight of 4 bits."""
    given = inputs(path)[name]
    stored = load_file(path / f"weights/rank-{rank:05}.safetensors")[name]
    unpack = layout(given["layout"]).unpack
    assert unpack is not None
    shape = open_checkpoint(Path("checkpoint")).read(name).shape
    return unpack(stored, (shape[0], shape[1] // (2 if rank or (path / "weights/rank-00001.safetensors").exists() else 1)))


def test_what_matters_is_rounded_with_less_error(workspace: Path, tsc: Tsc) -> None:
    matters = np.ones(64, dtype=np.float32)
    matters[40:] = 1000
    write_importance(FILE, {**INPUTS, DOWN: matters})
    assert tsc(*INT4, "-o", "plain.tsa")[0] == 0
    assert tsc(*INT4, "--importance", str(FILE), "-o", "tiny.tsa")[0] == 0
    w = open_checkpoint(Path("checkpoint")).read(DOWN)
    plain, found = ((values(Path(path), DOWN) - w).square().sum(0) for path in ("plain.tsa", "tiny.tsa"))
    assert found[40:].sum() < 0.9 * plain[40:].sum()
    assert found[32:40].sum() > plain[32:40].sum()
    assert torch.equal(found[:32], plain[:32])  # a group whose inputs count alike


def test_each_rank_has_the_importance_of_its_inputs(workspace: Path, tsc: Tsc) -> None:
    """Of 128 inputs of `down` each rank has 64, so that groups are the same as of one rank."""
    shapes = {"gate_proj": (128, 32), "up_proj": (128, 32), "down_proj": (32, 128)}
    wide = {**SHAPES, **{LAYER + f"mlp.{n}.weight": s for n, s in shapes.items()}}
    write_checkpoint(Path("checkpoint"), wide, intermediate_size=128)
    random = np.random.default_rng(1)
    write_importance(FILE, {n: random.random(s[1], dtype=np.float32) + 0.01 for n, s in wide.items() if len(s) == 2})
    for ranks in (1, 2):
        code, output = tsc(*INT4, "--importance", str(FILE), "--mesh", f"tp={ranks}", "-o", f"of{ranks}.tsa")
        assert code == 0, output
    one, two = values(Path("of1.tsa"), DOWN), [values(Path("of2.tsa"), DOWN, rank) for rank in (0, 1)]
    assert torch.equal(torch.cat(two, 1), one)


def test_the_artifact_says_what_it_was_rounded_by(workspace: Path, tsc: Tsc) -> None:
    write_importance(FILE)
    assert tsc(*INT4, "--importance", str(FILE), "-o", "tiny.tsa")[0] == 0
    entry = open_artifact(Path("tiny.tsa")).manifest.importance
    assert entry is not None
    assert entry.tokens == 100
    assert json.loads(Path("tiny.tsa/quantization.json").read_text())["importance"] == {
        "sha256": entry.sha256,
        "text_sha256": "0" * 64,
        "tokens": 100,
    }
    assert tsc(*INT4, "-o", "plain.tsa")[0] == 0
    assert open_artifact(Path("plain.tsa")).manifest.importance is None


def test_the_file_is_in_the_key(workspace: Path, tsc: Tsc) -> None:
    keys = []
    for scale in (1, 2, None):
        if scale is not None:
            write_importance(FILE, {n: v * scale for n, v in INPUTS.items()})
        options = () if scale is None else ("--importance", str(FILE))
        keys.append(json.loads(tsc(*INT4, "--key", *options)[1]))
    found = [key.pop("importance") for key in keys]
    assert len({*found}) == 3
    assert found[2] == "none"
    assert keys[1:] == keys[:-1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config_sha256": "1" * 64}, "was measured on another model: its config is 111111111111..., and this one's"),
        ({"format": 2}, "has format 2, this tsc reads 1"),
        ({"inputs": {n: v for n, v in INPUTS.items() if n != DOWN}}, f"has nothing of weight `{DOWN}`; did you mean"),
        ({"inputs": {**INPUTS, DOWN: np.ones(32, dtype=np.float32)}}, f"has [32] of weight `{DOWN}`, which has 64 inputs"),
        ({"inputs": {**INPUTS, DOWN: np.full(64, np.nan, dtype=np.float32)}}, f"has no mean squares of the inputs of weight `{DOWN}`"),
        ({"inputs": {**INPUTS, DOWN: np.zeros(64, dtype=np.float32)}}, f"has no mean squares of the inputs of weight `{DOWN}`"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(changed: dict[str, object], said: str, workspace: Path, tsc: Tsc) -> None:
    write_importance(FILE, **changed)  # type: ignore[arg-type]
    code, output = tsc(*INT4, "--importance", str(FILE), "-o", "tiny.tsa")
    assert code == 1
    assert f"error[TS0512]: --importance {FILE}: {said}" in output
    assert not Path("tiny.tsa").exists()


def test_what_is_no_importance_file_is_refused(workspace: Path, tsc: Tsc) -> None:
    for file, said in (
        ("checkpoint/model.safetensors", "is no importance file ("),
        ("llama.ts", "is no importance file ("),
        ("no", "cannot be read: no such file"),
    ):
        code, output = tsc(*INT4, "--importance", file, "-o", "tiny.tsa")
        assert code == 1
        assert f"error[TS0512]: --importance {file}: {said}" in output


@pytest.mark.parametrize("quantize", ["auto", "none", "int8"])
@pytest.mark.parametrize("last", [("-o", "tiny.tsa"), ("--key",)])
def test_without_int4_it_is_refused(quantize: str, last: tuple[str, ...], workspace: Path, tsc: Tsc) -> None:
    write_importance(FILE)
    code, output = tsc("compile", "--weights", "checkpoint", "--quantize", quantize, "--importance", str(FILE), *last)
    assert code == 1
    assert f"says how to round to 4 bits, and --quantize is {quantize}" in output
