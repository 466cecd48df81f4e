"""Rows of a tensor as tensors of their own, of a directory and of a GGUF's blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from tests.checkpoint.conftest import MakeDirectory, MakeGguf

from tsc.checkpoint import Checkpoint, open_checkpoint
from tsc.checkpoint.parts import in_parts, part_name

WHOLE = "model.layers.0.mlp.down_proj.weight"


def names(*rows: tuple[int, int]) -> list[str]:
    return [part_name(WHOLE, first, last) for first, last in rows]


def parted(checkpoint: Checkpoint, *rows: tuple[int, int]) -> Checkpoint:
    return in_parts(checkpoint, [*names(*rows), "model.norm.weight", "no.such[0:4]"])


def test_parts_are_there_instead_of_the_whole(make_directory: MakeDirectory) -> None:
    checkpoint = open_checkpoint(make_directory("llama"))
    found = parted(checkpoint, (0, 100), (100, 256))
    assert checkpoint.tensors.keys() - found.tensors.keys() == {WHOLE}
    assert found.tensors.keys() - checkpoint.tensors.keys() == set(names((0, 100), (100, 256)))
    whole = checkpoint.read(WHOLE)
    for first, last in ((0, 100), (100, 256)):
        [name] = names((first, last))
        assert found.tensors[name].shape == (last - first, 512)
        assert torch.equal(found.read(name), whole[first:last])
    assert torch.equal(found.read("model.norm.weight"), checkpoint.read("model.norm.weight"))
    assert (found.config, found.digest, found.eos_token_ids) == (checkpoint.config, checkpoint.digest, checkpoint.eos_token_ids)


def test_rows_that_no_part_has_are_missed_and_a_part_past_the_end_is_not_there(make_directory: MakeDirectory) -> None:
    checkpoint = open_checkpoint(make_directory("llama"))
    assert set(names((0, 10), (40, 256))) < parted(checkpoint, (10, 40)).tensors.keys()
    found = parted(checkpoint, (0, 200), (200, 300)).tensors
    assert names((200, 256))[0] in found
    assert names((200, 300))[0] not in found


def test_a_checkpoint_without_parts_is_itself(make_directory: MakeDirectory) -> None:
    checkpoint = open_checkpoint(make_directory("llama"))
    assert in_parts(checkpoint, checkpoint.tensors) is checkpoint


def test_blocks_of_a_part_are_rows_of_the_blocks(make_directory: MakeDirectory, make_gguf: MakeGguf, tmp_path: Path) -> None:
    source: Any = open_checkpoint(make_directory("llama"))
    tensors = {name: source.read(name) for name in source.tensors}
    checkpoint = open_checkpoint(make_gguf("llama", source.config, tensors, gguf.GGMLQuantizationType.Q8_0))
    found = parted(checkpoint, (0, 96), (96, 256))
    for first, last in ((0, 96), (96, 256)):
        [name] = names((first, last))
        assert found.formats[name] == checkpoint.formats[WHOLE] == "q8_0"
        assert torch.equal(found.blocks(name), checkpoint.blocks(WHOLE)[first:last])
        assert torch.equal(found.read(name), checkpoint.read(WHOLE)[first:last])
