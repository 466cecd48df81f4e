"""`tsc simulate`: n ranks in one process give what one device gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.passes.tiny_models import CONFIGS, path_of

from tsc import cli
from tsc.front import read_model
from tsc.simulation import simulate as module
from tsc.simulation.inputs import rank_weights


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(("model", "entry"), [*((m, ()) for m in sorted(CONFIGS)), ("llama", ("--entry", "embed"))])
def test_simulated_ranks_equal_one_device(model: str, entry: tuple[str, ...], ranks: int, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIGS[model]))
    done = CliRunner().invoke(cli.main, ["simulate", str(path_of(model)), "--config", str(config), "--mesh", f"tp={ranks}", *entry])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    values = [line.split()[0] for line in lines[1:-1]]
    layers = [v for v in values if "/" not in v]
    assert len(layers) == 3  # two layers and the logits, or the embeddings
    assert all(sum(v.startswith(f"{layer}/") for v in values) >= 1 for layer in layers[:-1])  # what modules inside return
    assert lines[-1].startswith(f"{ranks} ranks, ")
    assert lines[-1].endswith("equals one device (1e-9 of the largest value, f64)")


def test_a_wrong_program_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A rank's block of a weight is taken from the wrong end: nothing that types could show."""
    right = rank_weights
    monkeypatch.setattr(module, "rank_weights", lambda p, w, c: right(p, {n: t.flip(0) for n, t in w.items()} if c.get("kv") else w, c))
    found = module.simulate(read_model(path_of("llama")), CONFIGS["llama"], {"tp": 2})
    assert not all(c.holds for c in found.comparisons)


def test_a_model_that_is_too_large_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**CONFIGS["llama"], "hidden_size": 8192, "vocab_size": 128256}))
    done = CliRunner().invoke(cli.main, ["simulate", str(path_of("llama")), "--config", str(config), "--mesh", "tp=2"])
    assert done.exit_code == 1
    assert "TS0506" in done.output
    assert "smaller dimensions" in done.output
