"""The plans of a program on a GPU: kernels from the artifact's machine code or of torch's ops, recorded for each shape and played again.

Of a step the host copies the inputs in, asks for the recording, and copies out the token of each row's largest logit, which is all that
greedy sampling needs; logits follow where something else is asked of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from tskernels.dtypes import torch_dtype
from tskernels.gpu.peers import CAPACITY
from tskernels.registry import REFERENCE, Kernel, lookup, op_named
from tsrun.artifact import PROGRAM, Artifact
from tsrun.binding import COPY, BoundCall, BoundPlan
from tsrun.errors import ArtifactError
from tsrun.gpu.buckets import LARGEST, bucket
from tsrun.gpu.device import Bytes, Device, Handle
from tsrun.gpu.kernels_file import KERNELS, KernelsFile, Plan, PreparedInput, Size, read_kernels
from tsrun.gpu.launching import CallOnDevice, Preparing, preparing
from tsrun.gpu.peers import PeerMemory
from tsrun.limits import Limits
from tsrun.output import Output
from tsrun.places import Place, value
from tsrun.program import Program
from tsrun.step_inputs import StepInputs

_ALIGNMENT = 256
_BOUND_SHAPES = 128
Key = tuple[int, int, int, int, int]
Work = Callable[[], None]


@dataclass(slots=True)
class _PreparedInput:
    """What the host makes for each step, and where it goes."""

    make: Preparing
    host: Bytes
    device: Tensor


@dataclass(slots=True)
class _Bound:
    """A plan for steps of one shape. inputs: step inputs that it reads, host and device; recorded: once it has run."""

    work: list[Work]
    inputs: list[tuple[Bytes, Tensor]]
    prepared: list[_PreparedInput]
    output: Tensor
    largest: Tensor | None
    is_captured: bool
    recorded: Handle | None = None


@dataclass(slots=True)
class _Scratch:
    """Memory that calls use one after the other; what must be zeros is left so. What was handed out once stays where it is."""

    device: Device
    memories: dict[bool, list[Tensor]] = field(default_factory=lambda: {True: [], False: []})

    def places(self, plan: Plan, size: Callable[[Size], int]) -> dict[str, int]:
        """Addresses by name."""
        found: dict[str, int] = {}
        for zeroed, memories in self.memories.items():
            begins, end = {}, 0
            for scratch in plan.scratch:
                if scratch.zeroed == zeroed:
                    begins[scratch.name] = end
                    end += -(-size(scratch.bytes) // _ALIGNMENT) * _ALIGNMENT
            if end > (memories[-1].numel() if memories else 0):
                memories.append(self.device.memory(max(end, 2 * memories[-1].numel() if memories else 0)))
            found |= {name: memories[-1].data_ptr() + begin for name, begin in begins.items()}
        return found


class GpuPrograms:
    """inputs: of steps, whose host memory is pinned. gives_logits: a step's rows are logits; num_drafts: how many of the plans, the last
    ones, are drafts, which leave the step's output as it was; peers: by axis, where ranks have such memory."""

    can_run_head = True  # all logits are on the device, whatever of them was copied

    def __init__(
        self,
        device: Device,
        artifact: Artifact,
        program: Program,
        plans: Sequence[BoundPlan],
        limits: Limits,
        inputs: StepInputs,
        *,
        gives_logits: bool,
        peers: Mapping[str, PeerMemory] = MappingProxyType({}),
    ) -> None:
        self._device = device
        self._peers = peers
        self._plans = plans
        self._num_drafts = len(program.drafts)
        self._limits = limits
        self._inputs = inputs
        self._gives_logits = gives_logits
        self._pads = all(plan.token_multiple == 1 for plan in program.plans)
        self._step_arrays = {place.address: place.buffer for place in inputs.places().values()}
        self._kernels, self._file = _looked_up(plans, artifact), _kernels_file(artifact)
        with device.entered():
            code = [artifact.file(function.file).read_bytes() for function in self._file.functions]
            self._functions = [device.load(f, c) for f, c in zip(self._file.functions, code, strict=True)]
            self._scratch = _Scratch(device)
            most = {"T": limits.max_step_tokens, "S": limits.max_output_rows}
            self._arenas = {region: device.memory(program.largest_frame(region) * most[region]) for region in ("T", "S")}
            self._mirrors: dict[int, Tensor] = {}
            for place in _fixed_places(plans):
                self._mirror(place)
        self._constants: dict[tuple[float, ...], Tensor] = {}
        self._newest = sorted({v.newest for plan in self._file.plans for v in plan.variants})
        self._bound: OrderedDict[Key, _Bound] = OrderedDict()
        self._out: dict[tuple[bool, str], Bytes] = {}
        self._last: tuple[int, _Bound] | None = None

    def run(self, plan: int, T: int, S: int, P: int) -> Output:
        with self._device.entered(), torch.inference_mode():
            padded_T, padded_S = self._padded(T, S)
            self._inputs.pad(T, S, padded_T, padded_S, P)
            bound = self._bound_to(plan, padded_T, padded_S, P, self._newest_of(S))
            self._copy_in(bound, padded_S)
            if bound.recorded is None:
                for work in bound.work:
                    work()
                # States are overwritten by a step: recording asks for nothing, so that the first one runs once.
                if bound.is_captured:
                    bound.recorded = self._device.record(partial(_all, bound.work))
            else:
                self._device.replay(bound.recorded)
            is_draft = plan >= len(self._plans) - self._num_drafts
            self._last = S, bound
            keeps_few = bound.largest is not None and self._inputs.keeps_one(S)
            return self._copy_out(bound, S, is_draft, logits=not keeps_few)

    def run_head(self, plan: int, T: int, S: int, P: int) -> Output:
        assert self._last is not None
        with self._device.entered(), torch.inference_mode():
            found = self._copy_out(self._last[1], S, False, logits=True)
        return Output(found.address, found.dtype, found.shape)

    def close(self) -> None:
        """Let go of what was recorded: collectives are in it, whose group can not end before."""
        with self._device.entered():
            self._last = None
            self._bound.clear()
            self._device.finish()

    def _padded(self, T: int, S: int) -> tuple[int, int]:
        if not self._pads or T > LARGEST:
            return T, S
        return bucket(T, self._limits.max_step_tokens), bucket(S, self._limits.max_output_rows)

    def _newest_of(self, S: int) -> int:
        """Newest tokens of a sequence that a variant begins at: the most that one of this step has."""
        if self._newest[1:] == []:
            return 1
        most = max(last - first for first, last in self._inputs.shape_of(S)[0])
        return max((newest for newest in self._newest if newest <= most), default=1)

    def _copy_in(self, bound: _Bound, S: int) -> None:
        for source, target in bound.inputs:
            self._device.copy_in(target, source)
        if bound.prepared:
            spans, lengths = self._inputs.shape_of(S)
            for prepared in bound.prepared:
                made = prepared.make(spans, lengths).view(np.uint8)
                prepared.host[: made.size] = made
                self._device.copy_in(prepared.device[: made.size], prepared.host[: made.size])

    def _copy_out(self, bound: _Bound, S: int, is_draft: bool, *, logits: bool) -> Output:
        rows = bound.output[:S]
        dtype = next(name for name in ("f32", "bf16", "f16", "f64", "i32") if torch_dtype(name) == rows.dtype)
        host = self._host(is_draft, "rows", rows.numel() * rows.element_size() if logits else 0)
        largest = None
        if logits:
            self._device.copy_out(host[: rows.numel() * rows.element_size()], rows)
        if bound.largest is not None:
            found = self._host(is_draft, "largest", 4 * S)[: 4 * S]
            self._device.copy_out(found, bound.largest[:S])
            largest = found.view(np.int32)
        self._device.wait(self._device.mark())
        return Output(host.ctypes.data, dtype, tuple(rows.shape), largest)

    def _host(self, is_draft: bool, what: str, num_bytes: int) -> Bytes:
        """Pinned memory, as much as was ever wanted."""
        memory = self._out.get((is_draft, what))
        if memory is None or memory.size < num_bytes:
            memory = self._out[is_draft, what] = self._device.pinned(max(num_bytes, 4 * self._limits.max_output_rows))
        return memory

    def _bound_to(self, plan: int, T: int, S: int, P: int, newest: int) -> _Bound:
        key = plan, T, S, P, newest
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bind(plan, {"T": T, "S": S, "P": P, "SMS": self._device.multiprocessors}, newest)
            self._bound[key] = bound
            if len(self._bound) > _BOUND_SHAPES:
                self._bound.popitem(last=False)
        self._bound.move_to_end(key)
        return bound

    def _bind(self, plan: int, sizes: Mapping[str, int], newest: int) -> _Bound:
        calls = self._plans[plan].calls
        prepared: dict[str, _PreparedInput] = {}
        work = [step for call in calls for step in self._work(call, sizes, newest, prepared)]
        output = self._tensor(self._plans[plan].output, sizes)
        largest = None
        if self._gives_logits:
            largest = self._device.memory(4 * len(output)).view(torch.int32)
            work.append(partial(self._device.call, partial(_largest, output, largest)))
        addresses = dict.fromkeys(
            arg.address for call in calls for arg in call.args if isinstance(arg, Place) and arg.address in self._step_arrays
        )
        inputs = []
        places = {place.address: place for place in self._inputs.places().values()}
        for address in addresses:
            size = 4 * prod(value(n, sizes) for n in places[address].shape)
            array = self._step_arrays[address]
            assert isinstance(array, np.ndarray)
            inputs.append((array.view(np.uint8)[:size], self._mirrors[address][:size]))
        is_captured = sizes["T"] <= LARGEST and all(self._kernels[c.op, c.kernel].is_captured for c in calls if c.op != COPY)
        return _Bound(work, inputs, list(prepared.values()), output, largest, is_captured)

    def _work(self, call: BoundCall, sizes: Mapping[str, int], newest: int, prepared: dict[str, _PreparedInput]) -> list[Work]:
        args = [self._tensor(arg, sizes) if isinstance(arg, Place) else arg for arg in call.args]
        out = self._tensor(call.out, sizes)
        if call.op == COPY:
            source = args[0]
            assert isinstance(source, Tensor)
            return [partial(self._device.call, partial(out.copy_, source))]
        kernel = self._kernels[call.op, call.kernel]
        if call.plan is not None:
            plan, on_device = self._file.plans[call.plan], replace(self._on_device(call, args, out, sizes), newest=newest)
            if self._has_room(plan, on_device):
                return self._launches(plan, on_device, prepared)
            kernel = lookup(call.op, REFERENCE)
        given = {**call.attrs, **({"constants": call.constants} if call.constants else {})}
        result = {} if kernel.kind == "inplace" else {"out": out}
        return [partial(self._device.call, partial(kernel.function, *args, **given, **result))]

    @staticmethod
    def _has_room(plan: Plan, call: CallOnDevice) -> bool:
        """Whether ranks have the memory for what a call exchanges, if it does."""
        return plan.exchanged is None or (call.peers is not None and call.size(plan.exchanged) <= CAPACITY)

    def _launches(self, plan: Plan, on_device: CallOnDevice, prepared: dict[str, _PreparedInput]) -> list[Work]:
        scratch = self._scratch.places(plan, on_device.size)
        addresses = {}
        arguments = [a for launch in plan.variant(on_device.sizes["T"], on_device.newest).launches for a in launch.arguments]
        for wanted in plan.prepared:
            if PreparedInput(wanted.name) not in arguments:
                continue
            rows, shard = len(on_device.out), on_device.coordinates.get("shard", 0)
            identity = f"{wanted.function} {sorted(wanted.keywords.items())} {rows} {shard}"
            if identity not in prepared:
                capacity = on_device.size(wanted.capacity)
                make = preparing(wanted, on_device.sizes, rows, shard, capacity)
                prepared[identity] = _PreparedInput(make, self._device.pinned(4 * capacity), self._device.memory(4 * capacity))
            addresses[wanted.name] = prepared[identity].device.data_ptr()
        launches = replace(on_device, scratch=scratch, prepared=addresses).settle(plan)
        return [partial(self._device.launch, self._functions[one.function], one.grid, one.arguments) for one in launches]

    def _on_device(self, call: BoundCall, args: Sequence[Tensor | int], out: Tensor, sizes: Mapping[str, int]) -> CallOnDevice:
        names = zip(op_named(call.op).parameters, args, strict=False)
        numbers = {**call.attrs, **{name: arg for name, arg in names if isinstance(arg, int)}}
        coordinates = {name: number for name, number in numbers.items() if isinstance(number, int)}
        constants = 0
        if call.constants:
            key = tuple(call.constants)
            if key not in self._constants:
                self._constants[key] = self._device.upload(np.asarray(key, np.float32).view(np.uint8))
            constants = self._constants[key].data_ptr()
        peers = self._peers.get(str(call.attrs.get("axis")))
        return CallOnDevice([arg for arg in args if isinstance(arg, Tensor)], out, coordinates, sizes, constants, peers=peers)

    def _tensor(self, place: Place, sizes: Mapping[str, int]) -> Tensor:
        dtype = torch_dtype(place.dtype)
        shape, strides = [value(n, sizes) for n in place.shape], [value(n, sizes) for n in place.strides]
        if place.region == "fixed":
            whole, begin = self._mirrors[place.address], 0
        else:
            whole, begin = self._arenas[place.region], place.address * sizes[place.region]
        return whole.view(dtype).as_strided(shape, strides, (begin + place.offset) // dtype.itemsize)

    def _mirror(self, place: Place) -> None:
        """Weights and step inputs lie on the host, and get a copy; caches, states and what is kept are on the device."""
        if place.address in self._mirrors:
            return
        if isinstance(place.buffer, Tensor):
            self._mirrors[place.address] = place.buffer
        elif place.tensor:
            assert isinstance(place.buffer, memoryview)
            self._mirrors[place.address] = self._device.upload(np.frombuffer(place.buffer, np.uint8))
        else:
            assert isinstance(place.buffer, np.ndarray)
            self._mirrors[place.address] = self._device.memory(place.buffer.nbytes)


def _all(work: Sequence[Work]) -> None:
    for step in work:
        step()


def _largest(logits: Tensor, out: Tensor) -> None:
    """The first index of each row's largest logit; -1 where that is not finite."""
    most = logits.amax(-1, keepdim=True)  # NaN where there is one
    places = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)
    first = torch.where(logits == most, places, logits.shape[-1]).amin(-1)
    out.copy_(torch.where(most[:, 0].isfinite(), first, -1))


def _fixed_places(plans: Sequence[BoundPlan]) -> Iterator[Place]:
    for bound in plans:
        for call in bound.calls:
            yield from (place for place in (*call.args, call.out) if isinstance(place, Place) and place.region == "fixed")


def _kernels_file(artifact: Artifact) -> KernelsFile:
    """Of an artifact that launches nothing, an empty one."""
    if KERNELS not in artifact.manifest.files:
        return KernelsFile(1, artifact.manifest.target, [], [])
    return read_kernels(artifact.file(KERNELS))


def _looked_up(plans: Sequence[BoundPlan], artifact: Artifact) -> dict[tuple[str, str], Kernel]:
    """The kernels that the plans name."""
    found: dict[tuple[str, str], Kernel] = {}
    for op, name in {(call.op, call.kernel) for bound in plans for call in bound.calls if call.op != COPY}:
        try:
            found[op, name] = lookup(op, name)
        except Exception as error:  # KernelMissing, or what a plug-in's import raised
            what = f"kernel {name!r} of {op!r} can not be had here ({error})"
            raise ArtifactError(str(artifact.file(PROGRAM)), what, "compile it again with the `tsc` of this installation") from error
    return found
