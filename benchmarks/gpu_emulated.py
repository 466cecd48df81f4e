"""Whether a Hopper GPU gives what the emulator does: `python benchmarks/gpu_emulated.py`, in the repository's folder.

Runs the kernels of latent attention in CUDA C++ at the small shapes of the emulator's tests, the same operands in both, and prints how many
numbers of the results have the same bits, and the largest difference, in units of the last place of the largest number of its row: the
device's exponential function is not the emulator's to the last bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from mla_decode import Driver
from tests.gpu.kernels_of_test import Array, from_bf16
from tests.gpu.latent_cuda import DECODES, ptx_of, run

from tskernels.emulator import Report, TensorMap, Uninitialized
from tskernels.emulator import launch as emulate

SHAPES = ((16, (1024, 37), (1, 1), 64), (16, (200,), (4,), 32), (32, (130, 300), (4, 4), 64), (128, (260,), (1,), 64))
"""Heads, lengths, new tokens of each sequence, page."""
MOST_ERROR, MOST_OF_LOGARITHMS = 3e-3, 2e-5


def on_device(
    driver: Driver, function: ctypes.c_void_p, _ptx: str, _name: str, blocks: int, threads: int, arguments: Sequence[Any], **limits: int
) -> Report:
    """As the emulator's `launch`: results are written to the arrays."""
    kept: list[Any] = []
    back: list[tuple[Array, torch.Tensor]] = []
    values: list[Any] = []
    for argument in arguments:
        given = argument.array if isinstance(argument, Uninitialized) else argument
        if isinstance(argument, TensorMap):
            columns, rows, width = argument.array.shape
            matrix = np.ascontiguousarray(argument.array.transpose(1, 0, 2)).reshape(rows, columns * width)
            kept.append(torch.from_numpy(matrix.view(np.int16)).cuda().view(torch.bfloat16))
            values.append(driver.map(kept[-1], argument.box[1], argument.box[0]))
        elif isinstance(given, np.ndarray):
            kept.append(torch.from_numpy(given.view(np.uint8).copy() if given.flags.c_contiguous else given.copy()).cuda())
            back += [(given, kept[-1])] if given.flags.writeable else []
            values.append(ctypes.c_void_p(kept[-1].data_ptr()))
        else:
            values.append(ctypes.c_float(given) if isinstance(given, float) else ctypes.c_int(given))
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    torch.cuda.synchronize()
    driver.call("cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, limits["shared_bytes"], None, pointers, None)
    torch.cuda.synchronize()
    for array, tensor in back:
        array.view(np.uint8)[...] = tensor.cpu().numpy()
    return Report(0, 0, 0)


def results(start: Any, kept: list[Array], *arguments: Any, **limits: Any) -> Report:
    """Start, and keep what was not there before."""
    report: Report = start(*arguments, **limits)
    kept += [a.array.copy() for a in arguments[4] if isinstance(a, Uninitialized)][:2]
    return report


def main() -> None:
    torch.zeros(1, device="cuda")
    driver = Driver()
    kernels = driver.kernels(fp8=False)
    wrong = 0
    for name, shape in product(("sm90", "sm90_gangs"), SHAPES):
        decode = DECODES[name]
        started = partial(on_device, driver, kernels[decode.function])
        device: list[Array] = []
        emulator: list[Array] = []
        error, of_logarithms, _ = run(decode, ptx_of(name), *shape, start=partial(results, started, device))
        run(decode, ptx_of(name), *shape, start=partial(results, emulate, emulator))
        (found, logarithms), (wanted, other) = device, emulator
        a, b = from_bf16(found), from_bf16(wanted)
        unit = 2.0 ** (np.floor(np.log2(np.abs(b).max(1, keepdims=True))) - 7)
        most = float((np.abs(a - b) / unit).max())
        wrong += error >= MOST_ERROR or of_logarithms >= MOST_OF_LOGARITHMS or most > 1.0
        print(
            f"{name} {shape}: {np.mean(found == wanted):.2%} of {found.size} numbers have the same bits, "
            f"the others differ by {most:.2f} at most; "
            f"logarithms by {np.abs(logarithms - other).max():.1e}; error of the device {error:.1e}",
            flush=True,
        )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
