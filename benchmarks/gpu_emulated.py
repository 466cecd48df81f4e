"""Whether a Hopper GPU gives what the emulator does: `python benchmarks/gpu_emulated.py`, in the repository's folder.

Runs the kernel of latent attention in CUDA C++ at the small shapes of the emulator's tests, the same operands in both, and prints how many
numbers of the results have the same bits, and the largest difference, in units of the last place of the largest number of its row: the
device's exponential function is not the emulator's to the last bit.
"""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path

import numpy as np
import torch
from mla_decode import Driver
from tests.gpu.kernels_of_test import Array, from_bf16
from tests.gpu.mla_case import BLOCKS, LATENT, SHAPES, SHARED_BYTES, THREADS, WIDTH, MlaCase, compiled


def on_device(driver: Driver, function: ctypes.c_void_p, case: MlaCase) -> tuple[Array, Array]:
    """The result in bf16, and logarithms."""
    (q, rotated), (cache, tables), (num_partials, num_counters) = case.queried, case.paged, case.num_parts
    bf16 = [torch.from_numpy(a.reshape(-1, a.shape[-1]).copy()).cuda().view(torch.bfloat16) for a in (q, rotated, cache)]
    work, table = (torch.from_numpy(a.copy()).cuda() for a in (case.encoded, tables))
    out = torch.full((len(q), LATENT), float("nan"), dtype=torch.bfloat16, device="cuda")
    logarithms = torch.full((len(q),), float("nan"), device="cuda")
    partials = torch.full((num_partials, 64, LATENT), float("nan"), device="cuda")
    partial_logarithms = torch.full((num_partials, 64), float("nan"), device="cuda")
    counters = torch.zeros(num_counters, dtype=torch.int32, device="cuda")
    box, counts = case.boxes
    maps = [driver.map(bf16[0], 64, 8), driver.map(bf16[1], 64, 1), *(driver.map(bf16[2], box, count) for count in counts)]
    tensors = (work, table, out, logarithms, partials, partial_logarithms, counters)
    values = [*maps, *(ctypes.c_void_p(t.data_ptr()) for t in tensors)]
    values += [ctypes.c_int(n) for n in (table.shape[1], case.page, case.heads)] + [ctypes.c_float(WIDTH**-0.5)]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    torch.cuda.synchronize()
    driver.call("cuLaunchKernel", function, BLOCKS, 1, 1, THREADS[case.which], 1, 1, SHARED_BYTES, None, pointers, None)
    torch.cuda.synchronize()
    return out.view(torch.uint16).cpu().numpy(), logarithms.cpu().numpy()


def main() -> None:
    torch.zeros(1, device="cuda")
    driver = Driver()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        ptx = compiled("90", "ptx", Path(folder, "kernel.ptx")).read_text()
        function = driver.load(compiled("90", "cubin", Path(folder, "kernel.cubin")), "mla_decode")
        for shape in SHAPES:
            case = MlaCase("90", *shape)
            (found, logarithms), (wanted, other, _) = on_device(driver, function, case), case.emulated(ptx)
            a, b = from_bf16(found), from_bf16(wanted)
            unit = 2.0 ** (np.floor(np.log2(np.abs(b).max(1, keepdims=True))) - 7)
            most, error = float((np.abs(a - b) / unit).max()), case.check(found, logarithms)
            wrong += error >= 3e-3 or most > 1.0
            print(
                f"{shape}: {np.mean(found == wanted):.2%} of {found.size} numbers have the same bits, the others differ by {most:.2f} at "
                f"most; logarithms by {np.abs(logarithms - other).max():.1e}; error of the device {error:.1e}",
                flush=True,
            )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
