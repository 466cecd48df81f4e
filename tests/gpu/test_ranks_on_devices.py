"""Two ranks from end to end, each on a device of its own that is interpreted: workers are forked, so that they have the device, too."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gpu.interpreter import FORKS, require
from tests.gpu.interpreting import InterpretingDevice
from tests.gpu.models import LLAMA, GpuModels
from tests.gpu.test_executor import PROMPTS, tokens
from tests.models.running import compiled

from tsrun import ranks
from tsrun.sampler import Sampling
from tsrun.worker import serve

require()

pytestmark = [pytest.mark.slow, *FORKS]


class ForkedWorker(ranks.Worker):
    """A worker that has what this process has patched."""

    def __init__(self, path: Path, rank: int, store_file: Path, threads: int, target: str | None) -> None:
        self.rank = rank
        self.process = _Forked(lambda report: serve(path, rank, store_file, threads, report, target))  # type: ignore[assignment]


class _Forked:
    """What a worker asks of a process: its reports, and its end."""

    def __init__(self, serve: Any) -> None:
        ours, theirs = os.pipe()

        def be() -> None:
            torch.set_num_threads(1)
            serve(lambda milestone: os.write(theirs, json.dumps({"reached": milestone}).encode() + b"\n"))

        self._process = multiprocessing.get_context("fork").Process(target=be, daemon=True)
        self._process.start()
        os.close(theirs)
        self.stdout, self.stdin = os.fdopen(ours, "rb", buffering=0), open(os.devnull, "wb")  # noqa: SIM115
        self.pid = self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        return self._process.exitcode or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InterpretingDevice:
    device = InterpretingDevice(folder=tmp_path)
    for module in ("ranks", "gpu.opening"):
        monkeypatch.setattr(f"tsrun.{module}.device_for", lambda target, chosen, rank: None if chosen == "cpu" else device)
    monkeypatch.setattr(ranks, "Worker", ForkedWorker)
    for module in ("peers", "all_reduce"):
        monkeypatch.setattr(f"tskernels.gpu.{module}.BLOCKS", 4)
    return device


def test_two_ranks_give_the_tokens_of_the_cpu(
    gpu_models: GpuModels, devices: InterpretingDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiled(gpu_models.checkpoint(LLAMA), tmp_path / "two.tsa", tp=2, target="sm_90a")
    one = tokens(gpu_models.artifact(LLAMA, "sm_90a"), PROMPTS, 3, Sampling(), target="cpu")
    assert tokens(path, PROMPTS, 3, Sampling()) == one
    assert num_exchanges(devices) == 2 * (2 * 2 + 1), "of two shapes that were then recorded: two of each layer, and the embedding's"
    devices.asked.clear()
    monkeypatch.setattr("tsrun.gpu.programs.CAPACITY", 0)
    assert tokens(path, PROMPTS, 1, Sampling()) == [made[:1] for made in one]
    assert num_exchanges(devices) == 0, "without room for them the collectives of torch tensors run"


def num_exchanges(device: InterpretingDevice) -> int:
    return sum(asked.function is not None and asked.function.source.endswith(":all_reduce") for asked in device.asked)
