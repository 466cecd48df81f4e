"""Weights whose names in a model file say how the checkpoint stores them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tsc.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from tsc.checkpoint.arranged import arranged, arrangement_of
from tsc.types import Factor, Shape

SIZES = {"N": 3, "F": 4, "D": 5}
JOINED = torch.arange(3 * 5 * 8).view(3, 5, 8).float()
GATE, UP = "gate_up[N, D, (F, 0 of 2)]", "gate_up[N, D, (F, 1 of 2)]"


def shape(*dimensions: str) -> Shape:
    return Shape.of("", [[Factor(name, SIZES[name]) for name in d.split()] for d in dimensions])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    save_file({"gate_up": JOINED, "down": torch.randn(3, 4, 5), "norm": torch.ones(5)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return open_checkpoint(tmp_path)


def test_neighbours_and_blocks_are_picked(checkpoint: Checkpoint) -> None:
    found = arranged(checkpoint, {GATE: shape("N", "F", "D"), UP: shape("N", "F", "D")})
    assert found.tensors[GATE] == TensorInfo("f32", (3, 4, 5))
    assert torch.equal(found.read(GATE), JOINED[..., 0::2].transpose(1, 2))
    assert torch.equal(found.read(UP), JOINED[..., 1::2].transpose(1, 2))
    half = "gate_up[N, D, (1 of 2, F)]"
    found = arranged(checkpoint, {half: shape("N D", "F")})
    assert torch.equal(found.read(half), JOINED[..., 4:].reshape(15, 4))


def test_what_is_arranged_stands_for_the_tensor_and_others_stay(checkpoint: Checkpoint) -> None:
    found = arranged(checkpoint, {GATE: shape("N", "F", "D")})
    assert set(found.tensors) == {GATE, UP, "down", "norm"}  # the part that nobody names is missed
    assert torch.equal(found.read("down"), checkpoint.read("down"))
    assert torch.equal(found.read(UP), JOINED[..., 1::2].transpose(1, 2))
    assert arranged(checkpoint, {"down": shape("N", "F", "D")}) is checkpoint


def test_a_tensor_of_another_shape_is_not_arranged(checkpoint: Checkpoint) -> None:
    assert arranged(checkpoint, {"down[N, D, F]": shape("N", "F", "D")}) is checkpoint
    assert arranged(checkpoint, {"up[N, D, F]": shape("N", "F", "D")}) is checkpoint


def test_names_that_say_nothing_of_it() -> None:
    assert arrangement_of("experts.down_proj") is None
    assert arrangement_of("qkv_proj.weight[0:4096]") is None  # rows of a tensor
    assert str((arrangement_of("x[ N,D , ( F, 0 of 2) ]") or ("", ""))[1]) == "N, D, (F, 0 of 2)"


@pytest.mark.parametrize(
    ("name", "what"),
    [("x[N, D-1]", "`D-1` is no factor"), ("x[N, (F, 2 of 2)]", "`2 of 2` is none of 2 parts"), ("x[N, (F, G]", "is no dimension")],
)
def test_what_is_said_wrongly(name: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        arrangement_of(name)
