"""Meshes and collectives over threads: every result by its definition, equal bits on all ranks, and failures that end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tskernels.collectives import all_gather, all_reduce, all_to_all, keep_first, local_slice, reduce_scatter
from tskernels.communicator import MeshCommunicator, current, reduce_in_order, use
from tskernels.mesh_axes import group_members
from tskernels.registry import lookup
from tskernels.simulated import run_ranks

COUNTS = (1, 2, 3, 4)
DTYPES = (torch.float32, torch.bfloat16)


def value(rank: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


def exact_sum(parts: list[Tensor]) -> Tensor:
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return total.to(parts[0].dtype)


def on_axis(count: int, function: Callable[[int], Tensor]) -> list[Tensor]:
    return run_ranks({"q": count}, lambda mesh: function(mesh.coordinate("q")))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("width", [5, 40_001])  # either side of the message that is reduced in parts
def test_all_reduce_sums_in_rank_order(count: int, width: int, dtype: torch.dtype) -> None:
    inputs = [value(rank, 2, width, dtype=dtype) for rank in range(count)]
    for result in on_axis(count, lambda rank: all_reduce(inputs[rank], "q", "sum")):
        assert torch.equal(result, exact_sum(inputs))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("width", [5, 40_001])
def test_all_reduce_max(count: int, width: int) -> None:
    inputs = [value(rank, 2, width) for rank in range(count)]
    for result in on_axis(count, lambda rank: all_reduce(inputs[rank], "q", "max")):
        assert torch.equal(result, torch.stack(inputs).amax(0))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_all_gather_joins_in_rank_order(count: int, dim: int) -> None:
    inputs = [value(rank, 2, 3, 4) for rank in range(count)]
    for result in on_axis(count, lambda rank: all_gather(inputs[rank], "q", dim)):
        assert torch.equal(result, torch.cat(inputs, dim))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_reduce_scatter_is_a_block_of_all_reduce(count: int, dtype: torch.dtype) -> None:
    inputs = [value(rank, 3, 2 * count, dtype=dtype) for rank in range(count)]
    results = on_axis(count, lambda rank: reduce_scatter(inputs[rank], "q", 1))
    assert torch.equal(torch.cat(results, 1), exact_sum(inputs))
    assert results[0].shape == (3, 2)


@pytest.mark.parametrize("count", COUNTS)
def test_all_to_all_moves_a_shard_from_one_dimension_to_another(count: int) -> None:
    whole = value(0, 2 * count, 3 * count)
    results = on_axis(count, lambda rank: all_to_all(whole.chunk(count, 1)[rank], "q", 0, 1))
    for rank, result in enumerate(results):
        assert torch.equal(result, whole.chunk(count, 0)[rank])


@pytest.mark.parametrize("count", COUNTS)
def test_local_slice_and_keep_first(count: int) -> None:
    whole = value(0, 3, 2 * count)
    slices = on_axis(count, lambda rank: local_slice(whole, "q", 1))
    assert torch.equal(torch.cat(slices, 1), whole)
    assert slices[0].is_contiguous()
    kept = on_axis(count, lambda rank: keep_first(whole, "q"))
    assert torch.equal(kept[0], whole)
    assert all(part.count_nonzero() == 0 for part in kept[1:])


def test_composite_axes_group_the_ranks_that_differ_in_them() -> None:
    sizes = {"data": 2, "kv": 2, "q": 3}

    def gather(mesh: MeshCommunicator) -> dict[str, list[float]]:
        mine = torch.tensor([float(mesh.rank)])
        return {axis: all_gather(mine, axis, 0).tolist() for axis in ("data", "kv", "q", "kv*q", "q*kv", "data*q", "data*kv*q")}

    results = run_ranks(sizes, gather)
    assert results[0]["q"] == [0, 1, 2]
    assert results[7] == {
        "data": [1, 7],
        "kv": [7, 10],
        "q": [6, 7, 8],
        "kv*q": [6, 7, 8, 9, 10, 11],
        "q*kv": [6, 9, 7, 10, 8, 11],
        "data*q": [0, 1, 2, 6, 7, 8],
        "data*kv*q": list(range(12)),
    }


def test_coordinates_are_row_major() -> None:
    places = run_ranks({"kv": 2, "q": 2}, lambda mesh: tuple(mesh.coordinate(axis) for axis in ("kv", "q", "kv*q", "q*kv")))
    assert places == [(0, 0, 0, 0), (0, 1, 1, 2), (1, 0, 2, 1), (1, 1, 3, 3)]


@pytest.mark.parametrize("axis", ["kv*kv", "expert", "kv*", ""])
def test_an_axis_is_made_of_different_axes_of_the_mesh(axis: str) -> None:
    with pytest.raises(ValueError, match="is not made of different axes of the mesh"):
        group_members({"kv": 2, "q": 2}, 0, axis)


def test_unbound_thread_is_alone_on_every_axis() -> None:
    x = value(0, 2, 2)
    assert current().coordinate("whatever") == 0
    for result in (all_reduce(x, "kv*q", "sum"), all_gather(x, "q", 0), reduce_scatter(x, "q", 0), all_to_all(x, "q", 0, 1)):
        assert torch.equal(result, x)
        assert result is not x


def test_binding_is_the_threads_own_and_ends_with_its_block() -> None:
    mesh = MeshCommunicator({"q": 1}, 0, connect=lambda members: pytest.fail("nobody to connect to"))
    seen = []
    with use(mesh):
        assert current() is mesh
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen[0] is not mesh
    assert current() is seen[0]


def test_collective_kernel_fills_out() -> None:
    def run(mesh: MeshCommunicator) -> Tensor:
        out = torch.empty(2, 4)
        lookup("ts::all_gather", "reference").function(torch.full((2, 2), float(mesh.rank)), axis="q", dim=1, out=out)
        return out

    for out in run_ranks({"q": 2}, run):
        assert out.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_all_reduce_kernel_may_write_over_its_operand() -> None:
    def run(mesh: MeshCommunicator) -> list[float]:
        x = torch.full((3,), float(mesh.rank + 1))
        for _ in range(10):  # a rank that runs ahead must not change what the others still read
            lookup("ts::all_reduce", "reference").function(x, axis="q", reduction="sum", out=x)
        return x.tolist()

    assert run_ranks({"q": 3}, run) == [[6.0 * 3**9] * 3] * 3


def test_failure_of_one_rank_is_raised_and_ends_the_others() -> None:
    def run(mesh: MeshCommunicator) -> Tensor:
        if mesh.rank == 1:
            raise RuntimeError("rank one is out")
        return all_reduce(torch.ones(2), "q", "sum")

    with pytest.raises(RuntimeError, match="rank one is out") as caught:
        run_ranks({"q": 3}, run)
    assert caught.value.__notes__ == ["on rank 1 of 3"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rank-")]


def test_uneven_blocks_and_unknown_reductions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dimension 0 of \[3, 2\] cannot be split into 2 equal blocks"):
        on_axis(2, lambda rank: reduce_scatter(torch.ones(3, 2), "q", 0))
    with pytest.raises(ValueError, match="unknown reduction `mean`"):
        reduce_in_order([torch.ones(1)], "mean")


def test_bf16_is_summed_in_f32() -> None:
    parts = [torch.tensor([256.0]).bfloat16(), *[torch.tensor([1.0]).bfloat16()] * 4]
    assert reduce_in_order(parts, "sum").item() == 260.0  # in bf16, 256 + 1 is 256
