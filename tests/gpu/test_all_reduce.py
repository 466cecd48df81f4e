"""Sums over ranks that kernels make themselves: ranks are processes with memory that all of them have, and run in Triton's interpreter."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import torch
from tests.gpu.interpreter import FORKS, require
from tests.gpu.interpreting import interpret
from torch import Tensor

from tskernels.communicator import MeshCommunicator
from tskernels.dtypes import dtype_name
from tskernels.gpu.functions import Function
from tskernels.gpu.peers import memory_bytes
from tskernels.gpu.plan_json import plan_record
from tskernels.registry import REFERENCE, Call, Operand, lookup
from tskernels.simulated import run_ranks
from tskernels.target import gpu
from tsrun.gpu import kernels_file
from tsrun.gpu.launching import CallOnDevice
from tsrun.gpu.peers import PeerMemory

require()

pytestmark = [*FORKS]
NORM = {"axis": "tp", "eps": 1e-6, "offset": 1.0}


@dataclass(frozen=True)
class Exchange:
    """A call: of each rank the operands, and room for its result. late: who comes after the others."""

    op: str
    operands: Sequence[Sequence[Tensor]]
    attributes: Mapping[str, Any]
    out: Sequence[Tensor]
    late: int = 0


def shared(x: Tensor) -> Tensor:
    made: Tensor = x.clone().share_memory_()  # type: ignore[no-untyped-call]
    return made


def exchange(op: str, rows: int, width: int, dtype: torch.dtype, ranks: int, late: int = 0) -> Exchange:
    """Operands that are views of wider values, but for the weight."""
    attributes: dict[str, Any] = {"axis": "tp", "reduction": "sum"} if op == "ts::all_reduce" else {"axis": "tp"}
    residual, w = torch.randn(rows, 3 * width).to(dtype)[:, width : 2 * width], torch.randn(width).to(dtype)
    beside = {"ts::all_reduce": (), "ts::all_reduce_add": (residual,), "ts::all_reduce_add_norm": (residual, w)}[op]
    operands = [(torch.randn(rows, 2 * width).to(dtype)[:, :width], *beside) for _ in range(ranks)]
    wide = op == "ts::all_reduce_add_norm"
    out = [shared(torch.full((rows, width * (2 if wide else 1)), torch.nan, dtype=dtype)) for _ in range(ranks)]
    return Exchange(op, operands, NORM if wide else attributes, out, late)


def launched(given: Exchange, rank: int, memories: Sequence[Tensor]) -> None:
    """Run a rank's call as an artifact says it."""
    operands, out = given.operands[rank], given.out[rank]
    types = tuple(Operand(dtype_name(o.dtype), (None, *o.shape[1:]) if o.dim() > 1 else tuple(o.shape)) for o in operands)
    planner = lookup(given.op, "triton").plan
    assert planner is not None
    plan = planner(Call(given.op, types, given.attributes), gpu("sm_90a"))
    functions: list[Function] = []

    def number(function: Function) -> int:
        functions.append(function)
        return len(functions) - 1

    record = {"op": given.op, "kernel": "triton", "call": ""} | plan_record(plan, number)
    table = torch.tensor([memory.data_ptr() for memory in memories])
    peers = PeerMemory(table, rank, len(memories))
    sizes = {"T": len(out), "S": 1, "P": 1, "SMS": 6}
    for launch in CallOnDevice(operands, out, {}, sizes, peers=peers).settle(msgspec.convert(record, kernels_file.Plan)):
        interpret(_as_read(functions[launch.function]), launch.grid, launch.arguments)


def _as_read(function: Function) -> kernels_file.Function:
    resources = {"registers": 0, "shared": 0, "tensor_columns": 0, "stack": 0, "sha256": ""}
    of_file = {"file": "", "symbol": "", "threads": 32, "trailing": 0, "resources": resources}
    return msgspec.convert(of_file | function.record(), kernels_file.Function)


def run(exchanges: Sequence[Exchange], ranks: int) -> None:
    """All of them, one after the other, on ranks that go as fast as they can."""
    memories = [shared(torch.zeros(memory_bytes(ranks), dtype=torch.uint8)) for _ in range(ranks)]

    def be(rank: int) -> None:
        torch.set_num_threads(1)
        for given in exchanges:
            if given.late == rank:
                time.sleep(0.05)
            launched(given, rank, memories)

    in_processes(be, ranks)


def in_processes(be: Callable[[int], None], ranks: int) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=be, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [p.exitcode for p in processes] == [0] * ranks


def expected(given: Exchange) -> list[Tensor]:
    """What the op's reference gives each rank."""
    reference = lookup(given.op, REFERENCE).function

    def rank(mesh: MeshCommunicator) -> Tensor:
        out = torch.empty_like(given.out[mesh.rank])
        reference(*given.operands[mesh.rank], **given.attributes, out=out)
        return out

    return run_ranks({"tp": len(given.operands)}, rank)


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the interpreter is quick with."""
    for module in ("peers", "all_reduce"):
        monkeypatch.setattr(f"tskernels.gpu.{module}.BLOCKS", 4)


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize(("ranks", "dtype"), [(2, torch.float16), (3, torch.float32)], ids=str)
def test_sums_have_the_bits_of_the_ops_that_they_stand_for(ranks: int, dtype: torch.dtype) -> None:
    """Exchanges of other rows and widths follow each other: one block's, all blocks', more rows than blocks; late ranks among them. (The
    interpreter does not round to bf16, it cuts.)"""
    torch.manual_seed(ranks)
    shapes = [(1, 256), (9, 40), (3, 96), (3, 96), (2, 8), (5, 256), (1, 1000)]
    ops = ("ts::all_reduce_add_norm", "ts::all_reduce_add", "ts::all_reduce")
    given = [exchange(ops[i % 3], *shape, dtype, ranks, late=i % ranks) for i, shape in enumerate(shapes)]
    run(given, ranks)
    for one in given:
        width = one.operands[0][0].shape[1]
        for found, wanted in zip(one.out, expected(one), strict=True):
            assert torch.equal(found, one.out[0]), "ranks differ"
            assert torch.equal(found[:, :width], wanted[:, :width])
            torch.testing.assert_close(found, wanted, rtol=2**-10 if dtype == torch.float16 else 1e-5, atol=1e-6)


def test_a_rank_that_does_not_come_makes_the_sum_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tskernels.gpu.all_reduce.PATIENCE", 3)
    given = exchange("ts::all_reduce", 2, 16, torch.float32, 2)
    memories = [torch.zeros(memory_bytes(2), dtype=torch.uint8) for _ in range(2)]
    launched(given, 0, memories)
    assert given.out[0].isnan().all()
