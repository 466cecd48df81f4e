"""Ranks as real processes: equal tokens, and what happens when one of them ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.toy import Toy, write_manifest
from tests.segments import left_behind, segments

from tsrun.engine import Engine
from tsrun.errors import MachineError, RankError, UsageError
from tsrun.executor import Executor
from tsrun.generation import GenerationRequest
from tsrun.launch import launched
from tsrun.limits import LimitOptions
from tsrun.output import Output
from tsrun.sampler import Draws, Sampling
from tsrun.step import Step, announced_ints, pack, packed_ints, unpack
from tsrun.threads import share_of_threads

PROMPTS = [[256, 72, 101, 108, 108, 111], list(range(40, 75)), [9], list(range(84))]


def tokens_of(path: Path, options: LimitOptions | None = None) -> list[list[int]]:
    with Engine(path, options) as engine:
        tokens: dict[int, list[int]] = {}
        for seed, prompt in enumerate(PROMPTS):
            tokens[engine.submit(GenerationRequest(prompt, 12, Sampling(temperature=0.7 * seed, seed=seed), ignore_eos=True))] = []
        for event in engine.events():
            tokens[event.request].extend(event.token_ids)
        return list(tokens.values())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(is_running(pid) for pid in pids)


def test_two_ranks_make_the_tokens_of_one(toy_artifact: Path, toy_artifact_of_two_ranks: Path) -> None:
    expected = tokens_of(toy_artifact)
    assert tokens_of(toy_artifact_of_two_ranks) == expected
    assert tokens_of(toy_artifact_of_two_ranks, LimitOptions(max_step_tokens=4, page_size=2)) == expected
    # The block tables of the first step do not fit in the message that there is at first.
    assert tokens_of(toy_artifact_of_two_ranks, LimitOptions(page_size=1, depth=1)) == expected


def test_workers_end_with_the_engine(toy_artifact_of_two_ranks: Path) -> None:
    with Engine(toy_artifact_of_two_ranks) as engine:
        pids = engine.worker_pids()
        assert len(pids) == 1
        assert is_running(pids[0])
    assert wait_until_gone(pids, 1.0)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_killed_worker_is_told_in_one_line(toy_artifact_of_two_ranks: Path, depth: int) -> None:
    with Engine(toy_artifact_of_two_ranks, LimitOptions(depth=depth)) as engine:
        engine.submit(GenerationRequest(PROMPTS[0], ignore_eos=True))
        engine.step()
        os.kill(engine.worker_pids()[0], signal.SIGKILL)
        with pytest.raises(RankError, match=r"^rank 1: its process ended while the engine needed it \(killed by SIGKILL\)") as caught:
            list(engine.events())
        assert "\n" not in caught.value.line
        with pytest.raises(MachineError, match="a step has failed before"):
            engine.step()


@pytest.mark.parametrize("depth", [1, 2])
def test_an_interrupt_ends_the_workers(toy_artifact_of_two_ranks: Path, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(toy_artifact_of_two_ranks, LimitOptions(depth=depth)) as engine:
        pids = engine.worker_pids()
        engine.submit(GenerationRequest(PROMPTS[0], ignore_eos=True))
        engine.step()
        run = Executor.run

        def slowly(
            self: Executor, step: Step, draws: Draws | None
        ) -> Output:  # the other rank waits meanwhile, in the step's first collective
            time.sleep(1.0)
            return run(self, step, draws)

        monkeypatch.setattr(Executor, "run", slowly)
        timer = threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            list(engine.events())
        assert wait_until_gone(pids, 5.0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tsrun-step")]


def test_an_engine_can_be_opened_after_one_has_failed(toy_artifact_of_two_ranks: Path) -> None:
    test_a_killed_worker_is_told_in_one_line(toy_artifact_of_two_ranks, 2)
    assert tokens_of(toy_artifact_of_two_ranks)


def test_what_stops_a_worker_from_starting_is_told(toy: Toy, toy_artifact_of_two_ranks: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(toy_artifact_of_two_ranks, tmp_path / "copy.tsa"))
    file = path / "weights/rank-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RankError, match=r"^rank 1: .*rank-00001.safetensors: edited"):
        Engine(path)
    file.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    write_manifest(toy, path, ranks=2)
    with pytest.raises(RankError, match=r"^rank 1: .*rank-00001.safetensors: holds no tensor"):
        Engine(path)


def test_a_worker_that_does_not_come_up_is_told_in_one_line(toy_artifact_of_two_ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return started([sys.executable, "-c", "import sys; sys.stdin.read()"], **options)

    started = subprocess.Popen
    monkeypatch.setattr("tsrun.ranks.subprocess.Popen", hanging)
    monkeypatch.setattr("tsrun.ranks._START_SECONDS", 0.2)
    with pytest.raises(RankError, match=r"^rank 1: its process \(\d+\) is not verified 0 s after that of rank 0"):
        Engine(toy_artifact_of_two_ranks)


ENGINE_THAT_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from tsrun.engine import Engine
engine = Engine(Path(sys.argv[1]))
print(*engine.worker_pids(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_the_engine_is_killed(toy_artifact_of_two_ranks: Path) -> None:
    command = [sys.executable, "-c", ENGINE_THAT_IS_KILLED, str(toy_artifact_of_two_ranks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 1
    assert wait_until_gone(pids)


ENGINE_THAT_IS_KILLED_WHILE_RANKS_JOIN = """
import os, signal, sys
from pathlib import Path
from tskernels.shared_memory import SharedMemory
from tsrun.engine import Engine
def killed(self, sizes, rank, axes, name, **options):
    made(self, sizes, rank, axes, name, **options)
    print(*os.listdir("/dev/shm"), "|", name[1:], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
made, SharedMemory.__init__ = SharedMemory.__init__, killed
Engine(Path(sys.argv[1]))
"""


def test_shared_memory_that_nobody_has_opened_yet_goes_with_rank_0(toy_artifact_of_two_ranks: Path) -> None:
    pytest.importorskip("tskernels._cpu")
    command = [sys.executable, "-c", ENGINE_THAT_IS_KILLED_WHILE_RANKS_JOIN, str(toy_artifact_of_two_ranks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    found, name = done.stdout.split("|")
    assert name.strip() in found.split()
    assert left_behind({segment for segment in segments() if segment != name.strip()}) == set()


def test_ranks_that_a_launcher_started_are_used(toy_artifact: Path, toy_artifact_of_two_ranks: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tsrun", "generate", "-p", "hello", "--max-tokens", "12"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command[1:3]]
    alone = subprocess.run([*command, str(toy_artifact)], capture_output=True, check=True, timeout=120, env=environment)
    both = [*launcher, *command[3:], str(toy_artifact_of_two_ranks)]
    together = subprocess.run(both, capture_output=True, check=False, timeout=240, env=environment)
    assert together.returncode == 0, together.stderr.decode()
    assert together.stdout == alone.stdout


def test_a_launcher_with_another_number_of_ranks_is_refused(toy_artifact_of_two_ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert launched() == (0, 3)
    with pytest.raises(UsageError, match="the artifact has 2 ranks, the launcher started 3"):
        Engine(toy_artifact_of_two_ranks)


def test_cores_are_divided_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share_of_threads(None, 10_000) == 1
    assert share_of_threads(3, 2) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert share_of_threads(None, 2) == 5


def test_a_step_survives_its_message() -> None:
    T, S, G = 5, 2, 3
    for U, C in ((0, 0), (7, 0), (0, 2), (7, 2)):
        shapes = ((T,), (T,), (G, T), (S, 2), (S,), (S,), (S,), (S,), (U, 4), (C, 3))
        step = Step(*(np.arange(np.prod(shape), dtype=np.int32).reshape(shape) + 100 * i for i, shape in enumerate(shapes)))
        message = np.zeros(200, dtype=np.int32)
        pack(step, 1, message)
        assert announced_ints(message) == packed_ints(step)
        for sent, arrived in zip(step.arrays, unpack(message).arrays, strict=True):
            np.testing.assert_array_equal(arrived, sent)
