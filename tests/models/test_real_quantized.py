"""Real GGUF files run as they are: beside the same weights dequantized, what differs is that activations have 8 bits."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.running import compiled
from tests.models.test_real import SHORT, Real, gemma, long_texts, real, smollm2
from torch import Tensor

from tsc.checkpoint import open_checkpoint
from tsrun.artifact import open_artifact
from tsrun.executor import Executor
from tsrun.program import read_program
from tsrun.text_windows import window_limits, window_steps

__all__ = ["gemma", "real", "smollm2"]  # fixtures

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

LONGEST = 640
ROUNDING = math.sqrt(32) / 127 / math.sqrt(12)
"""Relative, of activations of 8 bits, at most: the largest of 32 has 127 steps and no more than all of their norm; what is rounded is off
by the twelfth part of a squared step on average."""
PRODUCTS = {"gemma": 18 * 4 + 1, "smollm2": 30 * 4 + 1}
"""One after the other, each of which adds an error of its own, independent of the others: q with k and v, o, gate with up, down; the
head."""


@pytest.fixture(params=["gemma", "smollm2"], scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Real, Path]]:
    """A checkpoint's name, its weights dequantized, and an artifact of them as they are."""
    found: Real = request.getfixturevalue(request.param)
    path = compiled(found.gguf, tmp_path_factory.mktemp("quantized") / "as_is.tsa", quantize="auto")
    yield request.param, found, path
    shutil.rmtree(path)


def all_logits(path: Path, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """[N, V] of each sequence."""
    artifact = open_artifact(path)
    program = read_program(artifact.file("program.json"))
    limits = window_limits(program, LONGEST)
    executor = Executor(artifact, program, 0, limits, threads=2)
    assert not executor.needs_torch, "every kernel is in C++"
    found = []
    for ids in texts:
        steps = window_steps(np.array(ids, dtype=np.int32), limits.num_groups)
        found.append(torch.cat([torch.from_numpy(executor.run(step).numbers().copy()) for step in steps]))
    return found


def test_a_file_as_it_is_predicts_what_its_dequantized_weights_do(pair: tuple[str, Real, Path]) -> None:
    name, dequantized, as_is = pair
    texts = [dequantized.tokenizer.encode(text)[:LONGEST] for text in [*SHORT, *long_texts()[1:4:2]]]
    expected, found = all_logits(dequantized.artifact, texts), all_logits(as_is, texts)
    errors, same, rows = [], 0, 0
    for wanted, given in zip(expected, found, strict=True):
        assert given.isfinite().all()
        spread = (wanted - wanted.mean(1, keepdim=True)).norm(dim=1)
        errors.append((given - wanted).norm(dim=1) / spread)
        same += int((given.argmax(1) == wanted.argmax(1)).sum())
        rows += len(wanted)
    error = float(torch.cat(errors).pow(2).mean().sqrt())
    bound = ROUNDING * math.sqrt(PRODUCTS[name])
    print(f"{name}: logits differ by {error:.2%} (bound {bound:.2%}); {same / rows:.2%} of {rows} next tokens are the same")
    assert error < bound
    assert same > 0.95 * rows


def test_the_weights_are_as_small_as_in_the_file(pair: tuple[str, Real, Path]) -> None:
    _, dequantized, as_is = pair
    quantization = open_artifact(as_is).manifest.quantization
    assert quantization is not None
    weights = sum(math.prod(info.shape) for info in open_checkpoint(dequantized.gguf).tensors.values())
    assert sum(quantization.values()) > 0.999 * weights
    assert (as_is / "weights" / "rank-00000.safetensors").stat().st_size < 1.05 * dequantized.gguf.stat().st_size
