"""What `tsc kernels roof` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tsc.diagnostics import CompileError, Diagnostic, near
from tsc.report import named_call
from tskernels.cost import GPUS
from tskernels.roofline import Floor, floor, runs, work

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
"""Of a checkout; a wheel carries none."""


def roof(op: str, shapes: Sequence[str], devices: Sequence[str], efficiency: float | None, overhead: float, results: Path | None) -> str:
    """Lines. efficiency: of a prediction; overhead: seconds that it has beside. Raises CompileError."""
    call = named_call(op, shapes)
    unknown = [device for device in devices if device not in GPUS]
    if unknown:
        raise CompileError(
            Diagnostic("TS0403", f"there is no device `{unknown[0]}`{near(unknown[0], list(GPUS))}; known: {', '.join(GPUS)}")
        )
    if any(size is None for operand in call.operands for size in operand.shape):
        raise CompileError(Diagnostic("TS0402", f"{call}: a roofline is of numbers, so write every size as one"))
    needed = work(call)
    lines = [
        str(call),
        f"  {needed.bytes / 1e6:,.3f} MB, {needed.flops / 1e9:,.3f} GFLOP, {needed.flops / max(needed.bytes, 1):.1f} a byte",
    ]
    found = runs(call, results or _RESULTS)
    for device in devices:
        least = floor(needed, device)
        lines.append(f"  {device:7} {least.seconds * 1e6:9.2f} us at least ({least.bound}: {_parts(least)})")
        if efficiency is not None:
            predicted = least.seconds / efficiency + overhead
            lines.append(
                f"          {predicted * 1e6:9.2f} us predicted, at {efficiency:.0%} of that rate and {overhead * 1e6:g} us beside"
            )
        lines += [
            f"          {run.seconds * 1e6:9.2f} us {run.kernel}, run on {run.device} {run.date}: {least.seconds / run.seconds:.0%}"
            for run in found
            if run.device.lower().startswith(device)
        ]
    return "\n".join(lines)


def _parts(least: Floor) -> str:
    return ", ".join(f"{part} {seconds * 1e6:.2f}" for part, seconds in (("memory", least.memory), ("arithmetic", least.arithmetic)))
