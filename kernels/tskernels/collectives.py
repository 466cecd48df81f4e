"""Ops that see the mesh: they move data between ranks or depend on which rank runs them."""

from __future__ import annotations

from torch import Tensor

from tskernels.communicator import blocks, current
from tskernels.cost import all_reduce_add_bound, all_reduce_add_norm_bound
from tskernels.elementwise import add
from tskernels.normalization import add_norm
from tskernels.registry import collective_op


def _fresh(result: Tensor, x: Tensor) -> Tensor:
    # An axis of one rank hands the operand back, but an op's result is never its operand.
    return result.clone() if result is x else result


@collective_op("ts::all_reduce")
def all_reduce(x: Tensor, axis: str, reduction: str) -> Tensor:
    """`sum` or `max` over the ranks of the axis, any shape; equal bits on all of them."""
    return _fresh(current().axis(axis).all_reduce(x, reduction), x)


@collective_op("ts::all_reduce_add", cost=all_reduce_add_bound)
def all_reduce_add(x: Tensor, residual: Tensor, axis: str) -> Tensor:
    """`residual` and the sum of `x` over the ranks of the axis, `[T, D]`; rounded as the two ops round."""
    return add(residual, all_reduce(x, axis, "sum"))


@collective_op("ts::all_reduce_add_norm", cost=all_reduce_add_norm_bound)
def all_reduce_add_norm(x: Tensor, residual: Tensor, w: Tensor, axis: str, eps: float, offset: float) -> Tensor:
    """`[T, 2*D]`: what `all_reduce_add` gives, and beside it the `rms_norm` of that with `w [D]`."""
    return add_norm(all_reduce(x, axis, "sum"), residual, w, eps, offset)


@collective_op("ts::all_gather")
def all_gather(x: Tensor, axis: str, dim: int) -> Tensor:
    """Ranks' blocks joined in rank order along the physical dimension `dim`."""
    return _fresh(current().axis(axis).all_gather(x, dim), x)


@collective_op("ts::reduce_scatter")
def reduce_scatter(x: Tensor, axis: str, dim: int) -> Tensor:
    """The sum over ranks, this rank's block of it along `dim`."""
    return _fresh(current().axis(axis).reduce_scatter(x, dim), x)


@collective_op("ts::all_to_all")
def all_to_all(x: Tensor, axis: str, split_dim: int, concat_dim: int) -> Tensor:
    """Block j along `split_dim` goes to rank j; what arrives is joined in rank order along `concat_dim`."""
    return _fresh(current().axis(axis).all_to_all(x, split_dim, concat_dim), x)


@collective_op("ts::local_slice")
def local_slice(x: Tensor, axis: str, dim: int) -> Tensor:
    """This rank's block along `dim` of a value that every rank has."""
    ranks = current().axis(axis)
    return blocks(x, ranks.size, dim)[ranks.rank].clone()


@collective_op("ts::keep_first")
def keep_first(x: Tensor, axis: str) -> Tensor:
    """The value on the axis' first rank, zeros elsewhere: a partial sum made of a replicated value."""
    return x.clone() if current().axis(axis).rank == 0 else x.new_zeros(x.shape)
