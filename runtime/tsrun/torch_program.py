"""Programs with kernels of torch tensors: for each step shape a flat list of calls, which a step replays."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tskernels.dtypes import torch_dtype
from tskernels.registry import Kernel, lookup
from tsrun.binding import COPY, BoundCall, BoundPlan, Observe, Value
from tsrun.errors import ArtifactError
from tsrun.output import Output
from tsrun.places import Place, value
from tsrun.program import Program, Region

_BOUND_SHAPES = 32


@dataclass(frozen=True, slots=True)
class _Replay:
    """What a step of one shape replays, and where its result then lies."""

    calls: tuple[Callable[[], Any], ...]
    output: Output


class TorchPrograms:
    """The plans of a program. most: of tokens and sequences in a step; observe: is told of each call."""

    def __init__(
        self,
        program: Program,
        plans: Sequence[BoundPlan],
        file: Path,
        threads: int,
        most: Mapping[Region, int],
        observe: Observe | None = None,
    ) -> None:
        self._threads = threads
        self._thread: int | None = None
        self._program = program
        self._plans = plans
        self._kernels = _looked_up(plans, file)
        self._most = most
        self._observe = observe
        self._capacity: dict[Region, int] = {"T": 0, "S": 0}
        self._arenas: dict[Region, Tensor] = {"T": _arena(0), "S": _arena(0)}
        self._fixed: dict[int, Tensor] = {}
        self._bound: OrderedDict[tuple[int, int, int, int], _Replay] = OrderedDict()

    def run(self, plan: int, T: int, S: int, P: int) -> Output:
        if self._thread != threading.get_ident():  # torch counts threads by the thread that asks for them
            torch.set_num_threads(self._threads)
            self._thread = threading.get_ident()
        with torch.inference_mode():
            bound = self._bound.get((plan, T, S, P))
            if bound is None:
                bound = self._bind(plan, T, S, P)
            else:
                self._bound.move_to_end((plan, T, S, P))
            for call in bound.calls:
                call()
        return bound.output

    can_run_head = False  # none of its kernels leaves logits out

    def run_head(self, plan: int, T: int, S: int, P: int) -> Output:
        raise NotImplementedError

    def _bind(self, plan: int, T: int, S: int, P: int) -> _Replay:
        self._grow({"T": T, "S": S})
        sizes = {"T": T, "S": S, "P": P}
        calls = tuple(step for call in self._plans[plan].calls for step in self._steps(call, sizes))
        output = self._plans[plan].output
        tensor = self._tensor(output, sizes)
        bound = _Replay(calls, Output(tensor.data_ptr(), output.dtype, tuple(tensor.shape)))
        self._bound[plan, T, S, P] = bound
        if len(self._bound) > _BOUND_SHAPES:
            self._bound.popitem(last=False)
        return bound

    def _steps(self, call: BoundCall, sizes: Mapping[str, int]) -> Iterator[Callable[[], Any]]:
        args = [self._argument(arg, sizes) for arg in call.args]
        if self._observe is not None:
            yield partial(self._observe, call, args)
        yield self._call(call, args, sizes)

    def _call(self, call: BoundCall, args: Sequence[Tensor | int], sizes: Mapping[str, int]) -> Callable[[], Any]:
        if call.op == COPY:
            source = args[0]
            assert isinstance(source, Tensor)
            return partial(self._tensor(call.out, sizes).copy_, source)
        kernel = self._kernels[call.op, call.kernel]
        attributes = {**call.attrs, **({"constants": call.constants} if call.constants else {})}
        if kernel.kind == "inplace":
            return partial(kernel.function, *args, **attributes)
        return partial(kernel.function, *args, **attributes, out=self._tensor(call.out, sizes))

    def _argument(self, arg: Value, sizes: Mapping[str, int]) -> Tensor | int:
        return self._tensor(arg, sizes) if isinstance(arg, Place) else arg

    def _tensor(self, place: Place, sizes: Mapping[str, int]) -> Tensor:
        dtype = torch_dtype(place.dtype)
        shape, strides = [value(n, sizes) for n in place.shape], [value(n, sizes) for n in place.strides]
        if place.region == "fixed":
            whole = self._fixed.get(place.address)
            if whole is None:
                with warnings.catch_warnings():
                    # Step inputs are rewritten between steps, weights never.
                    warnings.filterwarnings("ignore", "The given buffer is not writable")
                    whole = torch.frombuffer(place.buffer, dtype=dtype)
                self._fixed[place.address] = whole
            begin = 0
        else:
            whole, begin = self._arenas[place.region].view(dtype), place.address * sizes[place.region]
        return whole.as_strided(shape, strides, (begin + place.offset) // dtype.itemsize)

    def _grow(self, wanted: dict[Region, int]) -> None:
        """Make the arenas large enough. Bound shapes point into the old ones, so they go."""
        for region, size in wanted.items():
            if size > self._capacity[region]:
                self._bound.clear()
                self._capacity[region] = max(size, min(2 * self._capacity[region], self._most[region]))
                self._arenas[region] = _arena(self._program.largest_frame(region) * self._capacity[region])


def _looked_up(plans: Sequence[BoundPlan], file: Path) -> dict[tuple[str, str], Kernel]:
    """The kernels that the plans name."""
    found: dict[tuple[str, str], Kernel] = {}
    for op, name in {(call.op, call.kernel) for bound in plans for call in bound.calls if call.op != COPY}:
        try:
            found[op, name] = lookup(op, name)
        except Exception as error:  # KernelMissing, or what a plug-in's import raised
            what = f"kernel {name!r} of {op!r} can not be had here ({error})"
            raise ArtifactError(str(file), what, "compile it again with the `tsc` of this installation") from error
    return found


def _arena(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)
