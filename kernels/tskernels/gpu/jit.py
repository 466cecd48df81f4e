"""Runs a plan on torch tensors: on a device, its functions compiled when they are first called, or in Triton's interpreter.

Programs do not come here: their kernels are compiled ahead of time, and the executor launches them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from tskernels.attention import own_sequences
from tskernels.cache_layouts import FP8_CACHE
from tskernels.dtypes import dtype_name
from tskernels.gpu.launch import (
    Argument,
    Constants,
    Coordinate,
    CudaSource,
    Launch,
    Operand,
    Out,
    Peers,
    Plan,
    Planner,
    Prepared,
    PreparedInput,
    Scalar,
    ScratchSpace,
    StepShape,
    TensorMap,
    Variant,
)
from tskernels.gpu.sizes import Expression, of_operands, value
from tskernels.registry import Call, lookup, op_named
from tskernels.registry import Operand as OperandType
from tskernels.target import Target, gpu

if TYPE_CHECKING:
    from tskernels.registry import Op

INTERPRETED_TARGET: Final = gpu("sm_90a")
INTERPRETED_MULTIPROCESSORS: Final = 6
"""Few, so that small operands are split where a device's multiprocessors would be."""

Layouts = Mapping[int, str]
ConstantsOf = Callable[[Call], Sequence[float]]


def run_plan(
    op: str,
    planner: Planner,
    operands: Sequence[Any],
    out: Tensor | None,
    attributes: Mapping[str, Any],
    layouts: Layouts | None = None,
    constants: ConstantsOf | None = None,
) -> Tensor | None:
    """One call. Raises RuntimeError for tensors of the CPU outside of the interpreter, ValueError for a plan that is not Triton's."""
    known = op_named(op)
    given = dict(zip(known.parameters, operands, strict=False)) | dict(attributes)
    tensors = [v for v in given.values() if isinstance(v, Tensor)]
    numbers = {name: v for name, v in given.items() if v is not None and not isinstance(v, Tensor)}
    result = tensors[0] if known.kind == "inplace" else out
    if result is None:
        raise ValueError(f"{op}: a kernel writes to `out`, which is missing")
    call = _call(known, tensors, result, numbers, layouts or {})
    target, multiprocessors = _device(tensors[0])
    run = _Run(tensors, result, given, multiprocessors, () if constants is None else constants(call))
    plan = planner(call, target)
    other = run.variant(plan).kernel
    if other:
        lookup(op, other).function(*operands, out=out, **attributes)
    else:
        run.launch_all(plan)
    return result if known.kind == "inplace" else None


def _call(known: Op, tensors: Sequence[Tensor], out: Tensor, numbers: Mapping[str, Any], layouts: Layouts) -> Call:
    found = []
    [floats, *_] = [dtype_name(t.dtype) for i, t in enumerate(tensors) if t.is_floating_point() and i not in layouts] or ["f32"]
    for index, tensor in enumerate(tensors):
        if layouts.get(index) == FP8_CACHE:
            found.append(OperandType(floats, tuple(tensor.shape), FP8_CACHE))
        elif index in layouts:  # bytes do not tell what they are of: the weight of a product, whose sizes the other operands say
            outputs = out.shape[-1] * (2 if known.name == "ts::gated_linear" else 1)
            found.append(OperandType(dtype_name(tensors[0].dtype), (outputs, tensors[0].shape[-1]), layouts[index]))
        else:
            found.append(OperandType(dtype_name(tensor.dtype), tuple(tensor.shape)))
    return Call(known.name, tuple(found), numbers)


def is_interpreting() -> bool:
    """Whether Triton's functions run on tensors of the CPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def _device(tensor: Tensor) -> tuple[Target, int]:
    """What runs it, and how many multiprocessors that has."""
    if tensor.device.type == "cpu":
        if not is_interpreting():
            raise RuntimeError("a kernel for GPUs was given tensors of the CPU; set TRITON_INTERPRET=1 before triton is imported")
        return INTERPRETED_TARGET, INTERPRETED_MULTIPROCESSORS
    facts = torch.cuda.get_device_properties(tensor.device)
    architecture = facts.gcnArchName.partition(":")[0] if torch.version.hip else f"sm_{facts.major}{facts.minor}a"
    return gpu(architecture), facts.multi_processor_count


class _Run:
    """A call's tensors, and what its launches take of them."""

    def __init__(
        self, tensors: Sequence[Tensor], out: Tensor, given: Mapping[str, Any], multiprocessors: int, constants: Sequence[float]
    ) -> None:
        self.tensors, self.out, self.given = tensors, out, given
        self.shapes, self.strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
        self.constants = torch.tensor(constants, dtype=torch.float32, device=out.device)
        self.known = {"T": len(tensors[0]), "S": 1, "P": 1, "SMS": multiprocessors}
        if "spans" in given:
            self.known |= {"T": self._rows().shape[0], "S": len(given["spans"])}
        if "tables" in given:
            self.known["P"] = given["tables"].shape[1]
        self.scratch: dict[str, Tensor] = {}
        self.prepared: dict[str, Tensor] = {}

    def _rows(self) -> Tensor:
        return next(t for t in self.tensors if t.dim())

    def launch_all(self, plan: Plan) -> None:
        for launch in self.settle(plan):
            self._launch(launch)

    def settle(self, plan: Plan) -> tuple[Launch, ...]:
        """Make its memory and inputs; its launches for a step of this size."""
        for space in plan.scratch:
            # All bits set is NaN: what reads memory that nobody wrote shows it.
            filled = 0 if space.zeroed else 255
            self.scratch[space.name] = torch.full((self._size(space.bytes),), filled, dtype=torch.uint8, device=self.out.device)
        if "lengths" in self.given:
            step = self._step()
            self.prepared = {p.name: self._prepare(p, step) for p in plan.prepared}
        return self.variant(plan).launches

    def variant(self, plan: Plan) -> Variant:
        newest = max((last - first for first, last in self._step().spans), default=1) if "lengths" in self.given else 1
        return [v for v in plan.variants if (v.tokens <= self.known["T"] and v.newest <= newest) or v is plan.variants[0]][-1]

    def _step(self) -> StepShape:
        """Of the rows that are here."""
        spans, lengths = self.given["spans"].cpu(), self.given["lengths"].cpu()
        own = [(0, 0)] * len(spans)
        for sequence, first, last, _ in own_sequences(spans, lengths, self.known["T"], self.given.get("shard", 0)):
            own[sequence] = first, last
        return StepShape(own, lengths.tolist(), self.known)

    def _prepare(self, prepared: Prepared, step: StepShape) -> Tensor:
        module, _, name = prepared.function.partition(":")
        made = getattr(import_module(module), name)(step, **prepared.keywords)
        capacity = self._size(prepared.capacity)
        if len(made) > capacity:
            raise ValueError(f"{prepared.function} gives {len(made)} numbers, but there is room for {capacity}")
        # A launch may read past the last record, before it knows that.
        return torch.nn.functional.pad(torch.from_numpy(made), (0, capacity - len(made))).to(self.out.device)

    def _launch(self, launch: Launch) -> None:
        if isinstance(launch.source, CudaSource):
            raise ValueError(f"{launch.source.file} is CUDA C++: it runs from an artifact alone")
        function = getattr(import_module(launch.source.module), launch.source.function)
        grid = tuple(self._size(size) for size in launch.grid)
        if not all(grid):
            return
        arguments = {name: self._argument(a, launch.types.get(name, "")) for name, a in launch.arguments.items()}
        constants = dict(launch.constants)
        if launch.dependent and self.out.is_cuda and torch.version.hip is None:
            constants |= {"DEPENDENT": True, "launch_pdl": True}
        function[grid](**arguments, **constants, num_warps=launch.warps, num_stages=launch.stages)

    def _argument(self, argument: Argument, kind: str) -> Tensor | int | float:
        match argument:
            case Operand(index):
                return self.tensors[index]
            case Out():
                return self.out
            case Constants():
                return self.constants
            case ScratchSpace(name):
                return self.scratch[name].view(_TORCH[kind])
            case PreparedInput(name):
                return self.prepared[name]
            case Coordinate(name):
                return int(self.given[name])
            case Scalar(number, dtype):
                return float(_number(number)) if dtype == "f32" else self._size(_number(number))
            case Peers():
                raise ValueError("ranks exchange what a program's kernels compute: it runs from an artifact alone")
            case TensorMap():
                raise ValueError("descriptors of the tensor copy engine are for kernels in CUDA C++")

    def _size(self, size: Any) -> int:
        return value(of_operands(size, self.shapes, self.strides), self.known)


def _number(number: int | float | Expression) -> Any:
    return number


_TORCH: Final = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
}
