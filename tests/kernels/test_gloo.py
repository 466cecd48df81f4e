"""Ranks as processes: the same bits as ranks as threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tskernels import gloo
from tskernels.collectives import all_gather, all_reduce, all_to_all, keep_first, local_slice, reduce_scatter
from tskernels.communicator import MeshCommunicator, current, num_ranks, use
from tskernels.simulated import run_ranks


def run_all(mesh: MeshCommunicator) -> list[Tensor]:
    """Every collective along every axis, small and large, f32 and bf16."""
    assert current() is mesh
    results = [torch.tensor([mesh.coordinate(axis) for axis in ("kv", "q", "kv*q", "q*kv")])]
    for dtype in (torch.float32, torch.bfloat16):
        for width in (8, 40_000):
            x = torch.randn(4, width, generator=torch.Generator().manual_seed(mesh.rank)).to(dtype)
            for axis in ("kv", "q", "kv*q", "q*kv"):
                results += [all_reduce(x, axis, "sum"), all_reduce(x, axis, "max"), all_gather(x, axis, 1), reduce_scatter(x, axis, 0)]
                results += [all_to_all(x, axis, 1, 0), local_slice(x, axis, 1), keep_first(x, axis)]
    return results


def process(rank: int, sizes: dict[str, int], folder: str) -> None:
    torch.set_num_threads(1)
    gloo.join(num_ranks(sizes), rank, f"file://{folder}/meeting")
    mesh = gloo.mesh(sizes)
    with use(mesh):
        torch.save(run_all(mesh), f"{folder}/{rank}.pt")
    gloo.disconnect()


@pytest.mark.parametrize("sizes", [{"kv": 1, "q": 2}, pytest.param({"kv": 2, "q": 2}, marks=pytest.mark.slow)], ids=["two", "four"])
def test_processes_end_with_the_bits_of_threads(sizes: dict[str, int], tmp_path: Path) -> None:
    simulated = run_ranks(sizes, run_all)
    count = len(simulated)
    environment = {**os.environ, "PYTHONPATH": str(Path(gloo.__file__).parents[1])}
    # This file as a script: under pytest's importlib mode a spawned process could not import it.
    commands = [[sys.executable, __file__, str(rank), json.dumps(sizes), str(tmp_path)] for rank in range(count)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for running in processes:
            _, errors = running.communicate(timeout=120)
            assert running.returncode == 0, errors
    finally:
        for running in processes:
            running.kill()
            running.communicate()
    for rank in range(count):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(results) == len(simulated[rank]) == 1 + 2 * 2 * 4 * 7
        for mine, theirs in zip(results, simulated[rank], strict=True):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)


if __name__ == "__main__":
    process(int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])
