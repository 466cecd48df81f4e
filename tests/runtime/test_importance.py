"""The importance of inputs: their mean squares over all tokens of a text, whatever the windows and chunks that it is cut into."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.runtime.toy import BOS, Toy
from torch import Tensor

from tsrun import cli, text_windows
from tsrun.artifact import open_artifact
from tsrun.errors import RequestError, UsageError
from tsrun.importance import measured
from tsrun.text_windows import Text

IDS = np.random.default_rng(4).integers(0, 256, 150).tolist()
JOINED = {"q": "qkv", "gate": "gate", "up": "up", "o": "o", "down": "down"}
"""What the toy's artifact calls the weights."""


class Watched:
    """A weight that remembers what it was multiplied with."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.inputs = weight, list[Tensor]()

    @property
    def T(self) -> Watched:  # noqa: N802
        return self

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: object, arguments: Sequence[Any], _: object = None) -> Tensor:
        x, watched = arguments
        watched.inputs.append(x)
        result: Tensor = x @ watched.weight.T
        return result


def expected(windows: Sequence[list[int]]) -> dict[str, Tensor]:
    """By plain torch, in windows that each begin anew."""
    toy = Toy()
    watched = {name: Watched(w) for name, w in toy.weights.items() if w.dim() == 2 and name != "embed"}
    toy.weights.update(watched)  # type: ignore[arg-type]
    for ids in windows:
        toy.logits(ids)
    found = {name: torch.cat(w.inputs).double().square().mean(0).float() for name, w in watched.items()}
    return {"head": found["head"]} | {f"{i}.{JOINED[n]}": found[f"{i}.{n}"] for i in range(toy.layers) for n in JOINED}


@pytest.mark.parametrize("chunk", [128, 32, 7])
@pytest.mark.parametrize("begin", [[], [BOS]])
def test_it_is_the_mean_square_of_what_each_weight_is_multiplied_with(
    begin: list[int], chunk: int, toy_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_windows, "CHUNK", chunk)
    monkeypatch.setattr(text_windows, "WINDOW", 40)
    width = 40 - len(begin)
    wanted = expected([[*begin, *IDS[i : i + width]] for i in range(0, len(IDS), width)])
    found = measured(open_artifact(toy_artifact), Text(begin, IDS))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-6, msg=name)


def test_the_command_writes_a_file_that_says_what_it_is_of(
    toy_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("the sky is blue because " * 8)
    assert cli.run(["importance", str(toy_artifact), str(text), "--tokens", "50"]) == 0
    assert capsys.readouterr().out == "wrote toy.importance.safetensors: the importance of the inputs of 11 weights, on 50 tokens\n"
    assert cli.run(["importance", str(toy_artifact), str(text), "--tokens", "50", "-o", "again.safetensors"]) == 0
    assert Path("again.safetensors").read_bytes() == Path("toy.importance.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "text.txt", "toy.importance.safetensors"]
    with safe_open("again.safetensors", "pt") as file:
        record = json.loads(file.metadata()["importance"])
        assert file.get_tensor("1.down").shape == (48,)
    assert (record["format"], record["tokens"], record["config_sha256"]) == (1, 50, "1" * 64)


def test_what_can_not_be_measured_is_told(toy_artifact: Path, toy_artifact_of_two_ranks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match="it has no tokens"):
        measured(open_artifact(toy_artifact), Text([BOS], []))
    with pytest.raises(UsageError, match="for 2 ranks"):
        measured(open_artifact(toy_artifact_of_two_ranks), Text([], IDS))
    assert cli.run(["importance", str(toy_artifact), "no.txt"]) == 1
    assert capsys.readouterr().err == "tsrun: no.txt: can not be read (No such file or directory); give the path of a text file\n"


def test_quantized_weights_are_refused(toy_artifact: Path) -> None:
    artifact = open_artifact(toy_artifact)
    quantized = type(artifact)(artifact.path, msgspec.structs.replace(artifact.manifest, quantization={"int4": 1}))
    with pytest.raises(RequestError, match=r"its weights are quantized.*compile it with --quantize none"):
        measured(quantized, Text([BOS], IDS))
