"""What launches become on a GPU, without one: compiled in processes of their own, since a compiler may take its process along.

`python -m tests.gpu.machine_code` reads a pickled list of (architecture, launch) and writes a pickled list of MachineCode.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tskernels.gpu.launch import Launch, Scalar, TritonSource
from tskernels.target import ARCHITECTURES

Wanted = tuple[str, Launch]
_TYPES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "u8": "u8", "f8e4m3": "fp8e4nv", "i32": "i32", "i64": "i64"}


@dataclass(frozen=True)
class MachineCode:
    """stack: bytes a thread; shared: bytes; tensor_columns: of tensor memory; instructions: how often each is there, by its first word;
    before_wait: PTX up to where it waits for the launches before, where it does."""

    name: str
    registers: int
    stack: int
    shared: int
    tensor_columns: int
    instructions: Counter[str]
    before_wait: str | None = None

    def count(self, *names: str) -> int:
        """Instructions whose names begin so."""
        return sum(n for name, n in self.instructions.items() if name.startswith(names))


def compiled(wanted: Sequence[Wanted], processes: int = 2) -> list[MachineCode]:
    """In the order of what is wanted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    shares = [list(wanted[i::processes]) for i in range(processes)]
    command = [sys.executable, "-m", "tests.gpu.machine_code"]
    root = Path(__file__).parents[2]
    started = []
    for share in shares:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=root
        )
        assert process.stdin
        process.stdin.write(pickle.dumps(share))
        process.stdin.close()
        process.stdin = None
        started.append(process)
    found: list[list[MachineCode]] = []
    for process in started:
        made, said = process.communicate()
        assert process.returncode == 0, said.decode()[-4000:]
        found.append(pickle.loads(made))
    return [found[i % processes][i // processes] for i in range(len(wanted))]


def _compile(architecture: str, launch: Launch) -> MachineCode:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = launch.source
    assert isinstance(source, TritonSource)
    function: Any = getattr(import_module(source.module), source.function)
    names = function.arg_names
    signature, attributes = {}, {}
    for index, name in enumerate(names):
        argument = launch.arguments.get(name)
        if argument is None:
            signature[name] = "constexpr"
            continue
        multiple = argument.multiple if isinstance(argument, Scalar) else 16 if name in launch.types else 1
        signature[name] = f"*{_TYPES[launch.types[name]]}" if name in launch.types else _TYPES[getattr(argument, "dtype", "i32")]
        if multiple > 1:
            attributes[(index,)] = [["tt.divisibility", multiple]]
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    if "DEPENDENT" in names:
        constants[(names.index("DEPENDENT"),)] = launch.dependent and ARCHITECTURES[architecture] == "cuda"
    if ARCHITECTURES[architecture] == "cuda":
        target = GPUTarget("cuda", int(re.findall(r"\d+", architecture)[0]), 32)
    else:
        target = GPUTarget("hip", architecture, 64)
    made = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=target,
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    if target.backend == "hip":
        return _amd(made)
    return _nvidia(made)


def _nvidia(made: Any) -> MachineCode:
    words, usage = read_cubin(made.asm["cubin"])
    [registers], [stack] = (re.findall(rf"{what}:(\d+)", usage) for what in ("REG", "STACK"))
    columns = getattr(made.metadata, "tmem_size", 0) or 0
    before, wait, _ = made.asm["ptx"].partition("griddepcontrol.wait")
    return MachineCode(made.metadata.name, int(registers), int(stack), made.metadata.shared, columns, words, before if wait else None)


def read_cubin(code: bytes) -> tuple[Counter[str], str]:
    """How often each instruction is there, by its first word, and what Triton's `cuobjdump` says of resources."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        listing = _said(tools / "cuobjdump", "-sass", file.name)
        usage = _said(tools / "cuobjdump", "-res-usage", file.name)
    return Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?\w+\s+)?([A-Z0-9_]+)", listing, re.M)), usage


def _amd(made: Any) -> MachineCode:
    text = made.asm["amdgcn"]
    words = re.findall(r"^\s+([a-z]\w+)", text, re.M)
    [registers] = re.findall(r"\.vgpr_count:\s+(\d+)", text)[:1]
    [stack] = re.findall(r"\.private_segment_fixed_size:\s+(\d+)", text)[:1]
    return MachineCode(made.metadata.name, int(registers), int(stack), made.metadata.shared, 0, Counter(words))


def _said(tool: Path, *arguments: str) -> str:
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    from tests.gpu import machine_code  # what is pickled has the name under which others know it

    sys.stdout.buffer.write(pickle.dumps([machine_code._compile(*wanted) for wanted in pickle.load(sys.stdin.buffer)]))
