"""An NVIDIA GPU: memory, streams and graphs by torch, machine code by the driver. Needs neither Triton nor a compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from tskernels.target import ARCHITECTURES
from tsrun.errors import MachineError
from tsrun.gpu.device import Bytes, Device, Grid, Handle, TensorMap, Value
from tsrun.gpu.kernels_file import Function

_MAX_DYNAMIC_SHARED: Final = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CLUSTER_DIMENSION, _PROGRAMMATIC_SERIALIZATION = 4, 6  # CUlaunchAttributeID
_SMALL_SHARED: Final = 48 * 1024
_NUMBERS: Final[dict[str, Any]] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "f32": ctypes.c_float, "f64": ctypes.c_double}
_MAP_TYPES: Final = {"u8": 0, "f8e4m3": 0, "i32": 4, "i64": 5, "f16": 6, "f32": 7, "f64": 8, "bf16": 9}  # CUtensorMapDataType
_SWIZZLES: Final = {0: 0, 32: 1, 64: 2, 128: 3}
_L2_PROMOTION_256: Final = 3
_LAZY_PEER_ACCESS: Final = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: an id, and a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint32 * 16))


class _IpcHandle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


class _Loaded:
    """A function with what all its launches have in common."""

    def __init__(self, function: Function, handle: ctypes.c_void_p) -> None:
        self.handle = handle
        self.types = [kind for _, kind in function.signature]
        self.trailing = function.trailing
        self.threads = function.threads
        is_triton = function.compiler == "triton"
        self.shared = function.resources.shared if is_triton else function.shared
        self.grid_of_clusters = function.cluster if is_triton else 1
        found = []
        if function.cluster > 1:
            found.append(_Attribute(_CLUSTER_DIMENSION, 0, (ctypes.c_uint32 * 16)(function.cluster, 1, 1)))
        if function.dependent:
            found.append(_Attribute(_PROGRAMMATIC_SERIALIZATION, 0, (ctypes.c_uint32 * 16)(1)))
        self.attributes = (_Attribute * len(found))(*found)


def why_not(target: str, rank: int) -> str | None:
    """Why no program for `target` runs here; None where one does."""
    if ARCHITECTURES[target] != "cuda":
        return "only NVIDIA's are run so far"
    if torch.version.cuda is None:
        return "this installation of torch is for CPUs alone"
    if not torch.cuda.is_available():
        return "there is no GPU here"
    major, minor = torch.cuda.get_device_capability(_index(rank))
    return None if target == f"sm_{major}{minor}a" else f"this one is sm_{major}{minor}a"


def _index(rank: int) -> int:
    return rank % torch.cuda.device_count()


class CudaDevice(Device):
    """The GPU of a rank."""

    collectives: Literal["gloo", "nccl"] = "nccl"

    def __init__(self, rank: int) -> None:
        self._device = torch.device("cuda", _index(rank))
        torch.cuda.set_device(self._device)
        facts = torch.cuda.get_device_properties(self._device)
        self.architecture = f"sm_{facts.major}{facts.minor}a"
        self.multiprocessors = int(facts.multi_processor_count)
        self._stream: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self._device)[0])

    @contextmanager
    def entered(self) -> Iterator[None]:
        torch.cuda.set_device(self._device)  # of this thread, with the context that the driver's calls are of
        with torch.cuda.stream(self._stream):
            yield

    def memory(self, num_bytes: int) -> Tensor:
        with torch.cuda.stream(self._stream):
            return torch.zeros(num_bytes, dtype=torch.uint8, device=self._device)

    def share(self, num_bytes: int) -> tuple[int, bytes]:
        address, handle = (
            ctypes.c_uint64(),
            _IpcHandle(),
        )  # a handle is of an allocation as the driver made it: torch's pool has larger ones
        with self.entered():
            _check("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
            _check("cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(num_bytes))
            _check("cuCtxSynchronize")
            _check("cuIpcGetMemHandle", ctypes.byref(handle), address)
        return address.value, ctypes.string_at(ctypes.byref(handle), ctypes.sizeof(handle))

    def open_shared(self, handle: bytes) -> int:
        address = ctypes.c_uint64()
        with self.entered():
            _check("cuIpcOpenMemHandle_v2", ctypes.byref(address), _IpcHandle.from_buffer_copy(handle), ctypes.c_uint(_LAZY_PEER_ACCESS))
        return address.value

    def close_shared(self, address: int) -> None:
        with self.entered():
            _check("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def unshare(self, address: int) -> None:
        with self.entered():
            _check("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, source: Bytes) -> Tensor:
        found = torch.empty(source.size, dtype=torch.uint8, device=self._device)
        host = np.ascontiguousarray(source)
        _check("cuMemcpyHtoD_v2", ctypes.c_uint64(found.data_ptr()), ctypes.c_void_p(host.ctypes.data), ctypes.c_size_t(host.size))
        return found

    def pinned(self, num_bytes: int) -> Bytes:
        return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True).numpy()

    def load(self, function: Function, code: bytes) -> Handle:
        module, handle = ctypes.c_void_p(), ctypes.c_void_p()
        _check("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(code), what=function.file)
        _check("cuModuleGetFunction", ctypes.byref(handle), module, ctypes.c_char_p(function.symbol.encode()), what=function.file)
        loaded = _Loaded(function, handle)
        if loaded.shared > _SMALL_SHARED:
            _check("cuFuncSetAttribute", handle, ctypes.c_int(_MAX_DYNAMIC_SHARED), ctypes.c_int(loaded.shared), what=function.file)
        return loaded

    def copy_in(self, target: Tensor, source: Bytes) -> None:
        sizes = ctypes.c_uint64(target.data_ptr()), ctypes.c_void_p(source.ctypes.data), ctypes.c_size_t(source.size)
        _check("cuMemcpyHtoDAsync_v2", *sizes, _stream())

    def copy_out(self, target: Bytes, source: Tensor) -> None:
        sizes = ctypes.c_void_p(target.ctypes.data), ctypes.c_uint64(source.data_ptr()), ctypes.c_size_t(target.size)
        _check("cuMemcpyDtoHAsync_v2", *sizes, _stream())

    def launch(self, function: Handle, grid: Grid, arguments: Sequence[Value]) -> None:
        assert isinstance(function, _Loaded)
        values = [_packed(kind, value) for kind, value in zip(function.types, arguments, strict=True)]
        values += [ctypes.c_uint64(0)] * function.trailing
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        x, y, z = grid
        blocks, threads = (ctypes.c_uint * 3)(x * function.grid_of_clusters, y, z), (ctypes.c_uint * 3)(function.threads, 1, 1)
        config = _Config(blocks, threads, function.shared, _stream(), function.attributes, len(function.attributes))
        _check("cuLaunchKernelEx", ctypes.byref(config), function.handle, addresses, None)

    def call(self, kernel: Callable[[], object]) -> None:
        kernel()

    def record(self, work: Callable[[], None]) -> Handle:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph

    def replay(self, recorded: Handle) -> None:
        assert isinstance(recorded, torch.cuda.CUDAGraph)
        recorded.replay()

    def mark(self) -> Handle:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def finish(self) -> None:
        torch.cuda.synchronize(self._device)

    def wait(self, mark: Handle) -> None:
        assert isinstance(mark, torch.cuda.Event)
        mark.synchronize()


def _stream() -> ctypes.c_void_p:
    """Of this thread: while something is recorded, that of the recording."""
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def _packed(kind: str, value: Value) -> Any:
    if isinstance(value, TensorMap):
        return _tensor_map(value)
    return ctypes.c_uint64(int(value)) if kind.startswith("*") else _NUMBERS[kind](value)


def _tensor_map(given: TensorMap) -> Any:
    """128 bytes, at a multiple of 64."""
    rank = len(given.sizes)
    memory = ctypes.create_string_buffer(192)
    begin = -ctypes.addressof(memory) % 64
    found = (ctypes.c_uint8 * 128).from_buffer(memory, begin)
    sizes, strides = (ctypes.c_uint64 * rank)(*given.sizes), (ctypes.c_uint64 * max(1, rank - 1))(*given.strides)
    box, steps = (ctypes.c_uint32 * rank)(*given.box), (ctypes.c_uint32 * rank)(*[1] * rank)
    numbers = ctypes.c_int(_MAP_TYPES[given.dtype]), ctypes.c_uint32(rank), ctypes.c_void_p(given.address)
    rest = ctypes.c_int(0), ctypes.c_int(_SWIZZLES[given.swizzle]), ctypes.c_int(_L2_PROMOTION_256), ctypes.c_int(0)
    _check("cuTensorMapEncodeTiled", ctypes.byref(found), *numbers, sizes, strides, box, steps, *rest)
    return found


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise MachineError("libcuda.so.1", str(error), "install NVIDIA's driver") from None


def _check(name: str, *arguments: Any, what: str = "") -> None:
    """A call of the driver's. Raises MachineError with its words."""
    driver = _driver()
    code = getattr(driver, name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
        said = (text.value or b"an unknown error").decode()
        raise MachineError(what or "the GPU", f"{name} says {said} ({code})", "the artifact may be for another GPU" if what else "")
