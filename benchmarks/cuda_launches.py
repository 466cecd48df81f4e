"""Launches kernels in CUDA C++ on torch tensors of a GPU: nvcc makes their machine code when they are first asked for."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

import msgspec

from tskernels.gpu.compile import compile_functions
from tskernels.gpu.functions import Function, function_of
from tskernels.gpu.jit import _Run
from tskernels.gpu.launch import Argument, Launch, ScratchSpace, TensorMap
from tskernels.target import Target, gpu
from tsrun.gpu import device, kernels_file
from tsrun.gpu.cuda import CudaDevice


def launch(run: _Run, asked: Launch) -> None:
    """On the call's tensors."""
    on = _device()
    x, y, z = (run._size(size) for size in asked.grid)
    arguments = [_value(run, argument) for argument in asked.arguments.values()]
    on.launch(_loaded(function_of(asked), gpu(on.architecture)), (x, y, z), arguments)


@cache
def _device() -> CudaDevice:
    return CudaDevice(0)


@cache
def _loaded(function: Function, target: Target) -> device.Handle:
    [code] = compile_functions([function], target)
    facts = {"symbol": code.symbol, "threads": code.threads, "trailing": code.trailing, "resources": asdict(code.resources)}
    return _device().load(msgspec.convert({"file": function.name, **facts, **function.record()}, kernels_file.Function), code.code)


def _value(run: _Run, argument: Argument) -> device.Value:
    match argument:
        case TensorMap(of, dtype, sizes, strides, box, swizzle):
            address = _value(run, of)
            assert isinstance(address, int)
            numbers = (tuple(run._size(n) for n in given) for given in (sizes, strides, box))
            return device.TensorMap(address, dtype, *numbers, swizzle)
        case ScratchSpace(name):
            return run.scratch[name].data_ptr()
        case _:
            found = run._argument(argument, "")
            return found if isinstance(found, int | float) else found.data_ptr()
