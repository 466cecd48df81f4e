"""The examples do what their READMEs say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tsc.driver import compile_artifact
from tsc.front import place_model, read_model
from tsc.request import Request
from tspasses.placed import Options
from tspasses.plan import plan_of

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("parentheses", [True, False])
def test_a_parallel_block_needs_one_all_reduce(tmp_path: Path, parentheses: bool) -> None:
    text = (EXAMPLES / "parallel_block/parallel.ts").read_text()
    grouped = 'x + (Attention<"self_attn">(y, positions) + MLP<"mlp">(y))'
    assert grouped in text
    model = tmp_path / "parallel.ts"
    model.write_text(text if parentheses else text.replace(grouped, 'x + Attention<"self_attn">(y, positions) + MLP<"mlp">(y)'))
    config = json.loads((EXAMPLES / "parallel_block/config.json").read_text())
    plan = plan_of(place_model(read_model(model), config, {"tp": 4}, Options()))
    assert [(i.kind, i.bytes_per_row, i.times) for i in plan.items if i.module == "Layer"] == [("all_reduce", 8192, 32)]


def test_the_engine_runs_inside_a_program(tmp_path: Path, checkpoint: Path) -> None:
    artifact = tmp_path / "tiny.tsa"
    compile_artifact(Request(None, checkpoint, None, None, "f32", "cpu"), artifact, lambda *_: None)
    command = [sys.executable, str(EXAMPLES / "embed_engine/generate.py"), str(artifact), "the quick", "the lazy dog"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ended:") == 2
