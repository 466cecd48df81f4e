"""How well a text is predicted: the sum over its tokens, whatever the windows and chunks that it is cut into."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.runtime.toy import BOS, Toy

from tsrun import cli, perplexity, text_windows
from tsrun.artifact import open_artifact
from tsrun.errors import RequestError, UsageError
from tsrun.text_windows import Text

IDS = np.random.default_rng(3).integers(0, 256, 150).tolist()


def nats(toy: Toy, ids: list[int]) -> float:
    """Of all but the first, by plain torch."""
    return float(torch.nn.functional.cross_entropy(toy.logits(ids)[:-1].double(), torch.tensor(ids[1:]), reduction="sum"))


@pytest.mark.parametrize("chunk", [128, 32, 7])
@pytest.mark.parametrize("window", [96, 40])
def test_each_window_is_scored_but_its_first_token(
    toy: Toy, toy_artifact: Path, window: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_windows, "WINDOW", window)
    monkeypatch.setattr(text_windows, "CHUNK", chunk)
    plain = [IDS[i : i + window] for i in range(0, len(IDS), window)]
    found = perplexity.score(open_artifact(toy_artifact), Text([], IDS))
    assert (found.windows, found.tokens) == (len(plain), len(IDS) - len(plain))
    assert found.nats == pytest.approx(sum(nats(toy, ids) for ids in plain), rel=1e-4)
    begun = [[BOS, *IDS[i : i + window - 1]] for i in range(0, len(IDS), window - 1)]
    found = perplexity.score(open_artifact(toy_artifact), Text([BOS], IDS))
    assert found.tokens == len(IDS)
    assert found.nats == pytest.approx(sum(nats(toy, ids) for ids in begun), rel=1e-4)


def test_the_command_prints_a_line_or_an_object(toy_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the sky is blue because " * 8)
    assert cli.run(["perplexity", str(toy_artifact), str(text), "--tokens", "120", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] in (119, 120 - found["windows"], 120)
    assert found["perplexity"] == pytest.approx(math.exp(found["nats"] / found["tokens"]))
    assert cli.run(["perplexity", str(toy_artifact), str(text), "--tokens", "120"]) == 0
    assert capsys.readouterr().out.startswith(f"perplexity {found['perplexity']:.4f} of {found['tokens']} tokens")


def test_what_can_not_be_scored_is_told(toy_artifact: Path, toy_artifact_of_two_ranks: Path) -> None:
    with pytest.raises(RequestError, match="none of which follows another"):
        perplexity.score(open_artifact(toy_artifact), Text([], [1]))
    with pytest.raises(UsageError, match="for 2 ranks"):
        perplexity.score(open_artifact(toy_artifact_of_two_ranks), Text([], IDS))
