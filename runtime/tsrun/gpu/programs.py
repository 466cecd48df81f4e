"""The plans of a program on a GPU: kernels from the artifact's machine code or of torch's ops, recorded for each shape and played again.

Of a step the host copies the inputs in, at once, asks for the recording, and has the token of each row's largest logit copied out, which is
all that greedy sampling needs; logits follow where something else is asked of them. It waits for nothing: the next step may be asked for
before this one has ended, since ids that are tokens of it are looked up on the device.
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
from tsrun.gpu.kernels_file import KERNELS, KernelsFile, Plan, Prepared, PreparedInput, Size, read_kernels
from tsrun.gpu.launching import CallOnDevice, Preparing, newest_of, preparing
from tsrun.gpu.peers import PeerMemory
from tsrun.gpu.staging import Staged
from tsrun.limits import Limits
from tsrun.output import Output
from tsrun.places import Place, value
from tsrun.program import Program
from tsrun.step_inputs import StepInputs

_ALIGNMENT = 256
_BOUND_SHAPES = 128
_DTYPES = {torch_dtype(name): name for name in ("f32", "bf16", "f16", "f64", "i32")}
Key = tuple[int, int, int, int, int]
Work = Callable[[], None]


@dataclass(slots=True)
class _Bound:
    """A plan for steps of one shape. recorded: once it has run."""

    work: list[Work]
    staged: Staged
    output: Tensor
    largest: Tensor | None
    is_captured: bool
    recorded: Handle | None = None


@dataclass(slots=True)
class _Slot:
    """Pinned memory of a step under way: what goes in, and what comes out. mark: its end, until that was waited for."""

    staged: Bytes
    largest: Bytes
    rows: Bytes
    mark: Handle | None = None


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
    """inputs: of steps. gives_logits: a step's rows are logits; num_drafts: how many of the plans, the last
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
        places = inputs.places()
        self._ids = places["ids", 0]
        self._step_arrays = {place.address: inputs.array(*given) for given, place in places.items()}
        self._shapes = {place.address: place.shape for place in places.values()}
        self._vocabulary = artifact.manifest.vocabulary
        self._file = _kernels_file(artifact)
        self._kernels = _looked_up(plans, self._file, artifact)
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
        self._beginnings = self._file.beginnings()
        self._bound: OrderedDict[Key, _Bound] = OrderedDict()
        rows = limits.max_output_rows
        self._slots = {
            is_draft: [_Slot(device.pinned(0), device.pinned(4 * rows), device.pinned(4 * rows)) for _ in range(2)]
            for is_draft in (False, True)
        }
        self._last: tuple[int, _Bound, _Slot] | None = None
        # Where an id is looked up: a token's is itself, and after them are those that the step before has made.
        self._tokens: Tensor | None = None
        if gives_logits:
            known = np.arange(self._vocabulary + rows, dtype=np.int32)
            self._tokens = device.upload(known.view(np.uint8)).view(torch.int32)

    def run(self, plan: int, T: int, S: int, P: int) -> Output:
        return self.start(plan, T, S, P)()

    def start(self, plan: int, T: int, S: int, P: int) -> Callable[[], Output]:
        """Ask for a step; what is given back waits for its end. Its output is there until another one but one is asked for."""
        is_draft = plan >= len(self._plans) - self._num_drafts
        slot = self._next_slot(is_draft)
        with self._device.entered():
            padded_T, padded_S = self._padded(T, S)
            self._inputs.pad(T, S, padded_T, padded_S, P)
            newest = newest_of(self._beginnings, self._inputs.shape_of(S)[0]) if self._beginnings else 1
            bound = self._bound_to(plan, padded_T, padded_S, P, newest)
            self._copy_in(bound, slot, padded_S)
            if bound.recorded is not None:
                self._device.replay(bound.recorded)
            else:
                with torch.inference_mode():
                    _all(bound.work)
                    # States are overwritten by a step: recording asks for nothing, so that the first one runs once.
                    if bound.is_captured:
                        bound.recorded = self._device.record(partial(_all, bound.work))
            self._last = S, bound, slot
            keeps_few = bound.largest is not None and self._inputs.keeps_one(S)
            output = self._copy_out(bound, slot, S, logits=not keeps_few)
            slot.mark = self._device.mark()
        return partial(self._ended, slot, output)

    def run_head(self, plan: int, T: int, S: int, P: int) -> Output:
        assert self._last is not None
        S, bound, slot = self._last
        with self._device.entered():
            found = self._copy_out(bound, slot, S, logits=True)
            self._device.wait(self._device.mark())
        return Output(found.address, found.dtype, found.shape)

    def close(self) -> None:
        """Let go of what was recorded: collectives are in it, whose group can not end before."""
        with self._device.entered():
            self._last = None
            self._bound.clear()
            self._device.finish()

    def _ended(self, slot: _Slot, output: Output) -> Output:
        if slot.mark is not None:
            self._device.wait(slot.mark)
            slot.mark = None
        return output

    def _padded(self, T: int, S: int) -> tuple[int, int]:
        if not self._pads or T > LARGEST:
            return T, S
        return bucket(T, self._limits.max_step_tokens), bucket(S, self._limits.max_output_rows)

    def _next_slot(self, is_draft: bool) -> _Slot:
        """Of two that take turns: at most one step is under way when another is asked for."""
        slots = self._slots[is_draft]
        slots.reverse()
        slot = slots[0]
        if slot.mark is not None:  # nobody has waited for that step
            self._device.wait(slot.mark)
            slot.mark = None
        return slot

    def _copy_in(self, bound: _Bound, slot: _Slot, S: int) -> None:
        num_bytes = 4 * bound.staged.size
        if slot.staged.size < num_bytes:
            slot.staged = self._device.pinned(num_bytes)
        if num_bytes:
            bound.staged.fill(slot.staged[:num_bytes].view(np.int32), *self._inputs.shape_of(S))
            self._device.copy_in(bound.staged.memory[:num_bytes], slot.staged[:num_bytes])

    def _copy_out(self, bound: _Bound, slot: _Slot, S: int, *, logits: bool) -> Output:
        rows = bound.output[:S]
        dtype = _DTYPES[rows.dtype]
        if logits:
            num_bytes = rows.numel() * rows.element_size()
            if slot.rows.size < num_bytes:
                slot.rows = self._device.pinned(num_bytes)
            self._device.copy_out(slot.rows[:num_bytes], rows)
        largest = None
        if bound.largest is not None:
            found = slot.largest[: 4 * S]
            self._device.copy_out(found, bound.largest[:S])
            largest = found.view(np.int32)
        return Output(slot.rows.ctypes.data, dtype, tuple(rows.shape), largest)

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
        staged = self._staged(calls, sizes, newest)
        given = dict(staged.tensors)
        work: list[Work] = []
        ids = self._ids.address
        if self._tokens is not None and ids in given:
            raw, given[ids] = given[ids].view(torch.int32), self._device.memory(given[ids].numel())
            work.append(partial(self._device.call, partial(_looked_up_ids, self._tokens, raw, given[ids].view(torch.int32))))
        work += [step for call in calls for step in self._work(call, sizes, newest, staged, given)]
        output = self._tensor(self._plans[plan].output, sizes, given)
        largest = None
        if self._gives_logits:
            largest = self._device.memory(4 * len(output)).view(torch.int32)
            work.append(partial(self._device.call, partial(_largest, output, largest)))
            if self._tokens is not None and plan < len(self._plans) - self._num_drafts:
                known = self._tokens[self._vocabulary : self._vocabulary + len(output)]
                work.append(partial(self._device.call, partial(torch.clamp, largest, min=0, out=known)))
        is_captured = sizes["T"] <= LARGEST and all(self._kernels[c.op, c.kernel].is_captured for c in calls if c.op != COPY)
        return _Bound(work, staged, output, largest, is_captured)

    def _staged(self, calls: Sequence[BoundCall], sizes: Mapping[str, int], newest: int) -> Staged:
        """What the calls take of the step's inputs, and of what is prepared for them."""
        places = [arg for call in calls for arg in call.args if isinstance(arg, Place) and arg.address in self._step_arrays]
        arrays = {p.address: self._step_arrays[p.address][: prod(value(n, sizes) for n in self._shapes[p.address])] for p in places}
        prepared: dict[str, tuple[Preparing, int]] = {}
        for call in calls:
            if call.plan is None or not self._file.plans[call.plan].prepared:
                continue
            args, out = [_shaped(arg, sizes) if isinstance(arg, Place) else arg for arg in call.args], _shaped(call.out, sizes)
            on_device = replace(self._on_device(call, args, out, sizes), newest=newest)
            for wanted in _prepared(self._file.plans[call.plan], on_device):
                capacity, shard = on_device.size(wanted.capacity), on_device.coordinates.get("shard", 0)
                prepared[_identity(wanted, on_device)] = preparing(wanted, sizes, len(out), shard, capacity), capacity
        return Staged.of(self._device, arrays, prepared, self._ids.address, self._vocabulary)

    def _work(self, call: BoundCall, sizes: Mapping[str, int], newest: int, staged: Staged, given: Mapping[int, Tensor]) -> list[Work]:
        args = [self._tensor(arg, sizes, given) if isinstance(arg, Place) else arg for arg in call.args]
        out = self._tensor(call.out, sizes, given)
        if call.op == COPY:
            source = args[0]
            assert isinstance(source, Tensor)
            return [partial(self._device.call, partial(out.copy_, source))]
        kernel = self._kernels[call.op, call.kernel]
        if call.plan is not None:
            plan, on_device = self._file.plans[call.plan], replace(self._on_device(call, args, out, sizes), newest=newest)
            other = plan.variant(sizes["T"], newest).kernel or (None if _has_room(plan, on_device) else REFERENCE)
            if other is None:
                return self._launches(plan, on_device, staged)
            kernel = self._kernels[call.op, other]
        keywords = {**call.attrs, **({"constants": call.constants} if call.constants else {})}
        result = {} if kernel.kind == "inplace" else {"out": out}
        return [partial(self._device.call, partial(kernel.function, *args, **keywords, **result))]

    def _launches(self, plan: Plan, on_device: CallOnDevice, staged: Staged) -> list[Work]:
        addresses = {w.name: staged.prepared[_identity(w, on_device)].data_ptr() for w in _prepared(plan, on_device)}
        launches = replace(on_device, scratch=self._scratch.places(plan, on_device.size), prepared=addresses).settle(plan)
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

    def _tensor(self, place: Place, sizes: Mapping[str, int], given: Mapping[int, Tensor]) -> Tensor:
        """given: the step's inputs, by the addresses that they have on the host."""
        dtype = torch_dtype(place.dtype)
        shape, strides = [value(n, sizes) for n in place.shape], [value(n, sizes) for n in place.strides]
        if place.region == "fixed":
            whole, begin = given[place.address] if place.address in given else self._mirrors[place.address], 0
        else:
            whole, begin = self._arenas[place.region], place.address * sizes[place.region]
        typed = whole.view(dtype)  # which may be a part of memory
        return typed.as_strided(shape, strides, typed.storage_offset() + (begin + place.offset) // dtype.itemsize)

    def _mirror(self, place: Place) -> None:
        """Weights lie on the host, and get a copy; caches, states and what is kept are on the device."""
        if place.address in self._mirrors or place.address in self._step_arrays:
            return
        if isinstance(place.buffer, Tensor):
            self._mirrors[place.address] = place.buffer
        else:
            assert isinstance(place.buffer, memoryview)
            self._mirrors[place.address] = self._device.upload(np.frombuffer(place.buffer, np.uint8))


def _all(work: Sequence[Work]) -> None:
    for step in work:
        step()


def _looked_up_ids(tokens: Tensor, raw: Tensor, out: Tensor) -> None:
    torch.index_select(tokens, 0, raw, out=out)


def _largest(logits: Tensor, out: Tensor) -> None:
    """The first index of each row's largest logit; -1 where that is not finite."""
    most, first = logits.max(-1)  # NaN where there is one
    out.copy_(first)
    out.masked_fill_((most - most).isnan(), -1)


def _has_room(plan: Plan, call: CallOnDevice) -> bool:
    """Whether ranks have the memory for what a call exchanges, if it does."""
    return plan.exchanged is None or (call.peers is not None and call.size(plan.exchanged) <= CAPACITY)


def _prepared(plan: Plan, call: CallOnDevice) -> list[Prepared]:
    """What the launches of a step take of what the host makes."""
    arguments = [a for launch in plan.variant(call.sizes["T"], call.newest).launches for a in launch.arguments]
    return [wanted for wanted in plan.prepared if PreparedInput(wanted.name) in arguments]


def _shaped(place: Place, sizes: Mapping[str, int]) -> Tensor:
    """As the place, without memory."""
    shape, strides = [value(n, sizes) for n in place.shape], [value(n, sizes) for n in place.strides]
    return torch.empty_strided(shape, strides, dtype=torch_dtype(place.dtype), device="meta")


def _identity(wanted: Prepared, call: CallOnDevice) -> str:
    """Of what is the same for all calls that want it so."""
    return f"{wanted.function} {sorted(wanted.keywords.items())} {len(call.out)} {call.coordinates.get('shard', 0)}"


def _fixed_places(plans: Sequence[BoundPlan]) -> Iterator[Place]:
    for bound in plans:
        for call in bound.calls:
            yield from (place for place in (*call.args, call.out) if isinstance(place, Place) and place.region == "fixed")


def _kernels_file(artifact: Artifact) -> KernelsFile:
    """Of an artifact that launches nothing, an empty one."""
    if KERNELS not in artifact.manifest.files:
        return KernelsFile(1, artifact.manifest.target, [], [])
    return read_kernels(artifact.file(KERNELS))


def _looked_up(plans: Sequence[BoundPlan], file: KernelsFile, artifact: Artifact) -> dict[tuple[str, str], Kernel]:
    """The kernels that the plans name, and those that stand for them where they launch nothing."""
    found: dict[tuple[str, str], Kernel] = {}
    named = {(call.op, call.kernel) for bound in plans for call in bound.calls if call.op != COPY}
    others = {(plan.op, variant.kernel) for plan in file.plans for variant in plan.variants if variant.kernel}
    for op, name in named | others | {(plan.op, REFERENCE) for plan in file.plans if plan.exchanged is not None}:
        try:
            found[op, name] = lookup(op, name)
        except Exception as error:  # KernelMissing, or what a plug-in's import raised
            what = f"kernel {name!r} of {op!r} can not be had here ({error})"
            raise ArtifactError(str(artifact.file(PROGRAM)), what, "compile it again with the `tsc` of this installation") from error
    return found
