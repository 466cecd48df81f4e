"""What a GPU is, and how fast it copies and multiplies: `python benchmarks/gpu_machine.py`."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable
from datetime import date
from typing import Any

import torch


def facts() -> dict[str, Any]:
    """What the figures of a run are of."""
    device = torch.cuda.get_device_properties(0)
    return {
        "date": date.today().isoformat(),
        "device": device.name,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "multiprocessors": device.multi_processor_count,
    }


def machine() -> dict[str, Any]:
    """That, and what this GPU moves and multiplies: GB/s of a copy, read and written; TFLOP/s of a product of 8,192 cubed."""
    source = torch.randint(0, 255, (1 << 32,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source), 10)
    rows, columns = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = _seconds(lambda: rows @ columns, 10)
    rates = {"copy_gb_per_second": 2 * source.numel() / copy / 1e9, "matmul_tflops": 2 * 8192**3 / product / 1e12}
    return facts() | rates


def _seconds(work: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count + 2):
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return float(statistics.median(times[2:]))


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0]
    except OSError:
        return ""


if __name__ == "__main__":
    print(json.dumps(machine()))
