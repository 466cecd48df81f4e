"""The machine code of an artifact for GPUs: kernels.json, and a file a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tsc.artifact import ArtifactWriter
from tsc.diagnostics import MissingCapability
from tskernels.target import Target

if TYPE_CHECKING:
    from tskernels.gpu.functions import Function, MachineCode
    from tskernels.gpu.launch import Resources
    from tspasses.launch_table import LaunchTable

FORMAT = 1
SUFFIXES = {"cuda": "cubin", "rocm": "hsaco"}


@dataclass(frozen=True, slots=True)
class Kernels:
    """What programs launch, compiled."""

    target: Target
    functions: Sequence[Function]
    code: Sequence[MachineCode]
    plans: Sequence[dict[str, Any]]

    def write(self, writer: ArtifactWriter) -> None:
        records = []
        for function, code in zip(self.functions, self.code, strict=True):
            file = f"kernels/{function.name}-{code.resources.sha256[:12]}.{SUFFIXES[self.target.family]}"
            made = {"symbol": code.symbol, "threads": code.threads, "trailing": code.trailing, "resources": asdict(code.resources)}
            records.append({"file": file, **made, **function.record()})
        for name, data in {str(r["file"]): c.code for r, c in zip(records, self.code, strict=True)}.items():
            writer.write_bytes(name, data)
        writer.write_json("kernels.json", {"format": FORMAT, "target": str(self.target), "functions": records, "plans": self.plans})


def compile_kernels(table: LaunchTable, target: Target, progress: Callable[[str, int, int], None]) -> Kernels | None:
    """None where nothing is launched. Raises MissingCapability, a line of what a compiler refused."""
    if not table.functions:
        return None
    from tskernels.gpu.compile import CompilationFailed, compile_functions
    from tskernels.gpu.records import keep_records

    try:
        code = compile_functions(table.functions, target, lambda done, total: progress(f"kernels for {target}", done, total))
    except CompilationFailed as error:
        raise MissingCapability(f"--target {target}: {error}") from None
    keep_records(target, _of_kernels(table, [c.resources for c in code]))
    return Kernels(target, table.functions, code, table.plans)


def _of_kernels(table: LaunchTable, resources: Sequence[Resources]) -> Iterator[tuple[str, Resources]]:
    for plan in table.plans:
        for variant in plan["variants"]:
            for launch in variant["launches"]:
                yield f"{plan['op']} {plan['kernel']}", resources[launch["function"]]
