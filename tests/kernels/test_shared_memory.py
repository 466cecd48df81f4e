"""Collectives through shared memory: the bits of the simulated communicator, by a team of any size, between threads and processes."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from tests.kernels.test_gloo import run_all
from tests.segments import left_behind, segments
from torch import Tensor

from tskernels import collectives
from tskernels.communicator import MeshCommunicator, num_ranks, use
from tskernels.dtypes import torch_dtype
from tskernels.simd import SIMD, TABLE
from tskernels.simulated import run_ranks

_cpu = pytest.importorskip("tskernels._cpu", reason="needs the native kernels, which are built for x86-64 alone", exc_type=ImportError)

from tskernels.shared_memory import SharedMemory  # noqa: E402  (it needs the native kernels)
from tskernels.simd_kernels import operand  # noqa: E402

Result = TypeVar("Result")
AXES = ("kv", "q", "kv*q", "q*kv")
SLOT = 256 * 1024
"""Bytes that travel in one piece."""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = segments()
    yield
    assert not left_behind(before)


def on_ranks(sizes: Mapping[str, int], function: Callable[[SharedMemory, int], Result], axes: Sequence[str] = AXES) -> list[Result]:
    """As `run_ranks`, each rank with a segment of its own of one name."""
    name, meeting = f"/tsrun-{secrets.token_hex(8)}", threading.Barrier(num_ranks(sizes), timeout=60)

    def run(mesh: MeshCommunicator) -> Result:
        def joined() -> SharedMemory:
            return SharedMemory(sizes, mesh.rank, axes, name, threads=1, timeout_seconds=30)

        memory = joined() if mesh.rank == 0 else None
        meeting.wait()
        memory = memory or joined()
        meeting.wait()
        if mesh.rank == 0:
            memory.unlink()
        try:
            return function(memory, mesh.rank)
        finally:
            memory.leave()

    return run_ranks(sizes, run)


def call(memory: SharedMemory, team: object, op: str, x: Tensor, axis: str, shape: Sequence[int], **attributes: object) -> Tensor:
    """A collective as a program calls it."""
    kernel = TABLE[f"ts::{op}", SIMD]
    out = torch.empty(tuple(shape), dtype=x.dtype)
    _cpu.call(team, kernel.symbol, [operand(x)], operand(out), kernel.numbers(attributes), [], memory.group(axis))
    return out


def value(rank: int, dtype: str, *shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(rank)) * 100
    return x.to(torch_dtype(dtype))


CASES: dict[str, list[dict[str, object]]] = {
    "all_reduce": [{"reduction": "sum"}, {"reduction": "max"}],
    "all_gather": [{"dim": 0}, {"dim": 1}, {"dim": -1}],
    "reduce_scatter": [{"dim": 0}, {"dim": 1}, {"dim": -1}],
    "all_to_all": [{"split_dim": 0, "concat_dim": 1}, {"split_dim": -1, "concat_dim": 0}, {"split_dim": 1, "concat_dim": 1}],
    "local_slice": [{"dim": 0}, {"dim": 1}, {"dim": -1}],
    "keep_first": [{}],
}


TEAMS = [1, 3]
DTYPES = ["f32", "bf16", "i32", "i64"]
SIZES = [{"kv": 1, "q": 2}, {"kv": 1, "q": 3}, {"kv": 2, "q": 2}]


@pytest.mark.parametrize(
    ("sizes", "dtype", "workers"),
    # Every two of these in turns, which they do not know of each other.
    [(sizes, dtype, TEAMS[(i + j) % 2]) for i, sizes in enumerate(SIZES) for j, dtype in enumerate(DTYPES)],
    ids=str,
)
def test_kernels_give_the_bits_of_simulated_ranks(sizes: dict[str, int], dtype: str, workers: int) -> None:
    """Of values smaller than a slot and larger ones, whole and parts of a joint product's rows."""
    shapes = [(12, 12, 12), (12, 36, 300)]  # the second in f32 is 518 KB

    def operands(rank: int) -> Iterator[tuple[Tensor, str, str, dict[str, object]]]:
        for shape in shapes:
            whole = value(rank, dtype, *shape)
            part = value(rank, dtype, shape[0], shape[1] * shape[2] + 7)[:, 3:-4].view(shape)
            for x in (whole, part):
                for axis in AXES:
                    for op, cases in CASES.items():
                        for attributes in cases:
                            yield x, axis, op, attributes

    expected = run_ranks(sizes, lambda mesh: [getattr(collectives, op)(x, axis, **given) for x, axis, op, given in operands(mesh.rank)])

    def run(memory: SharedMemory, rank: int) -> None:
        team = _cpu.Team(workers)
        for (x, axis, op, given), wanted in zip(operands(rank), expected[rank], strict=True):
            found = call(memory, team, op, x, axis, wanted.shape, **given)
            assert torch.equal(found, wanted), (op, axis, given, tuple(x.shape))

    on_ranks(sizes, run)


def test_the_second_of_two_buffers_is_not_written_while_it_is_read() -> None:
    """Ranks that hurry and ranks that dawdle in turns, over pieces that end within a slot."""
    sizes, width = {"q": 3}, SLOT // 4 + 100

    def run(memory: SharedMemory, rank: int) -> None:
        team = _cpu.Team(2)
        for step in range(30):
            if (step + rank) % 3 == 0:
                time.sleep(0.002)
            x = torch.full((1, width), float(step * 10 + rank))
            found = call(memory, team, "all_gather", x, "q", (3, width), dim=0)
            assert found.amin(1).tolist() == found.amax(1).tolist() == [step * 10.0, step * 10.0 + 1, step * 10.0 + 2]

    on_ranks(sizes, run, ("q",))


def test_all_reduce_may_write_over_its_operand() -> None:
    def run(memory: SharedMemory, rank: int) -> None:
        x, team = torch.full((SLOT // 2,), float(rank + 1)), _cpu.Team(2)
        for _ in range(5):
            _cpu.call(team, "all_reduce", [operand(x)], operand(x), [0.0], [], memory.group("q"))
        assert (x == 6.0 * 3**4).all()

    on_ranks({"q": 3}, run, ("q",))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_max_keeps_what_is_not_a_number(dtype: str) -> None:
    rows = torch.tensor([[1.0, torch.nan, 3.0], [torch.nan, 2.0, -torch.inf]]).to(torch_dtype(dtype))

    def run(memory: SharedMemory, rank: int) -> None:
        found = call(memory, _cpu.Team(1), "all_reduce", rows[rank], "q", (3,), reduction="max")
        assert found.isnan().tolist() == [True, True, False]
        assert found[2] == 3

    on_ranks({"q": 2}, run, ("q",))


def test_torch_kernels_meet_in_it_too() -> None:
    sizes = {"kv": 2, "q": 2}
    expected = run_ranks(sizes, run_all)

    def run(memory: SharedMemory, rank: int) -> list[Tensor]:
        with use(memory.mesh()) as mesh:
            return run_all(mesh)

    for found, wanted in zip(on_ranks(sizes, run), expected, strict=True):
        assert isinstance(found, list)
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_rank_that_leaves_is_missed_by_all_soon() -> None:
    def run(memory: SharedMemory, rank: int) -> float:
        if rank == 1:
            time.sleep(0.3)  # the others sleep by then
            return 0.0
        begin, x, out = time.monotonic(), torch.ones(4, 3), torch.full((4, 3), 7.0)
        with pytest.raises(RuntimeError, match=r"^rank 1 has ended$"):
            _cpu.call(_cpu.Team(2), "all_reduce", [operand(x)], operand(out), [0.0], [], memory.group("q"))
        assert out.count_nonzero() == 0  # what went on with it had no wild numbers
        return time.monotonic() - begin

    assert max(on_ranks({"q": 3}, run, ("q",))) < 5.0


def test_a_rank_that_lives_and_does_not_come_is_not_waited_for_for_ever() -> None:
    name = f"/tsrun-{secrets.token_hex(8)}"
    mine = _cpu.Segment.create(name, 2, 1)
    theirs = _cpu.Segment.open(name, 2, 1, 1)
    _cpu.Segment.unlink(name)
    assert mine.has(1)
    assert theirs.has(0)
    x = torch.ones(3)
    group = _cpu.RankGroup(mine, 0, [0, 1], 0, 10, 0.2)
    with pytest.raises(RuntimeError, match=r"^rank 1 has not come to a collective in time$"):
        _cpu.call(_cpu.Team(1), "all_reduce", [operand(x)], operand(x), [0.0], [], group)


def test_what_can_not_be_had_is_refused() -> None:
    name = f"/tsrun-{secrets.token_hex(8)}"
    with pytest.raises(OSError, match="shared memory"):
        _cpu.Segment.open(name, 2, 1, 1)
    with pytest.raises(OSError, match="shared memory"):
        _cpu.Segment.create(name, 1 << 20, 1 << 10)  # 500 TB
    segment = _cpu.Segment.create(name, 2, 1)
    try:
        assert Path("/dev/shm", name[1:]).stat().st_mode & 0o777 == 0o600
        with pytest.raises(OSError, match="shared memory"):
            _cpu.Segment.create(name, 2, 1)
        with pytest.raises(OSError, match="shared memory"):
            _cpu.Segment.open(name, 3, 1, 1)
        with pytest.raises(ValueError, match="no such area or ranks"):
            _cpu.RankGroup(segment, 1, [0, 1], 0, 10, 1.0)
    finally:
        _cpu.Segment.unlink(name)


OTHER_RANK = """
import sys, time
from tskernels import _cpu
segment = _cpu.Segment.open(sys.argv[1], 2, 1, 1)
print("open", flush=True)
time.sleep(60)
"""


def test_a_killed_process_is_missed_even_before_it_is_buried() -> None:
    """A zombie still has a process id; its lock is gone."""
    name = f"/tsrun-{secrets.token_hex(8)}"
    segment = _cpu.Segment.create(name, 2, 1)
    environment = {**os.environ, "PYTHONPATH": str(Path(_cpu.__file__).parents[1])}
    other = subprocess.Popen([sys.executable, "-c", OTHER_RANK, name], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        _cpu.Segment.unlink(name)
        threading.Timer(0.3, other.send_signal, (signal.SIGKILL,)).start()
        x, out, begin = torch.ones(3), torch.empty(6), time.monotonic()
        group = _cpu.RankGroup(segment, 0, [0, 1], 0, 10, 30.0)
        with pytest.raises(RuntimeError, match=r"^rank 1 has ended$"):
            _cpu.call(_cpu.Team(1), "all_gather", [operand(x)], operand(out), [0.0], [], group)
        assert time.monotonic() - begin < 5.0
    finally:
        other.kill()
        other.communicate()


def test_rope_has_positions_that_the_program_itself_slices() -> None:
    """Its table was grown for the positions before the step, when those of an earlier one lay there."""
    tokens, width, frequencies = 8, 4, [1.0, 0.25]
    x, positions = torch.randn(tokens, 1, width), torch.arange(tokens, dtype=torch.int32)
    kernel = TABLE["ts::rope", SIMD]
    numbers = kernel.numbers({"interleaved": False, "kind": "default"})

    def run(memory: SharedMemory, rank: int) -> None:
        mine, out = x.chunk(2)[rank].contiguous(), torch.empty(tokens // 2, 1, width)
        program = _cpu.Program(_cpu.Arena(), 64, 0)
        sliced = ("T", 0, 64, 0, "i32", (("T", 2),), (1,))
        given = torch.empty_like(positions)
        program.add("local_slice", [operand(given)], sliced, [0.0], [], memory.group("q"))
        program.add(kernel.symbol, [operand(mine), sliced], operand(out), numbers, frequencies)
        team = _cpu.Team(2)
        for begin in (0, 5000, 100_000):
            given.copy_(positions + begin)
            program.run(team, tokens, 1, 1)
            angles = given.chunk(2)[rank].double()[:, None, None] * torch.tensor(frequencies).double()
            a, b = mine.double().chunk(2, -1)
            wanted = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)
            torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)

    on_ranks({"q": 2}, run, ("q",))
