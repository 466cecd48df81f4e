"""Compiles functions for GPUs, in a process of its own: a compiler that is given what a target lacks ends the process.

`python -m tskernels.gpu.compile_worker` reads jobs, a line of JSON each, and answers each with one: where the machine code is and what it
takes, or the error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tskernels.gpu.launch import CudaSource
from tskernels.target import ARCHITECTURES

_TRITON_TYPES: Final = {"f16": "fp16", "f32": "fp32", "f64": "fp64", "f8e4m3": "fp8e4nv", "f8e5m2": "fp8e5"}
_FEWEST_INSTRUCTIONS: Final = 20
"""Of a function that does anything."""


def compile_triton(job: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Machine code of a function, and what `Machine` says of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = job["source"].partition(":")
    function = getattr(import_module(module), name)
    architecture = job["target"]
    is_cuda = ARCHITECTURES[architecture] == "cuda"
    types, constants = dict(job["signature"]), dict(job["constants"])
    if "DEPENDENT" in function.arg_names:
        constants["DEPENDENT"] = is_cuda and job["dependent"]
    elif job["dependent"]:
        raise ValueError(f"{name} is to begin before the launches before it have ended, and does not wait for them")
    unknown = [n for n in function.arg_names if n not in types and n not in constants]
    if unknown or set(types) - set(function.arg_names):
        raise ValueError(f"{name} takes {', '.join(function.arg_names)}, and gets {', '.join([*types, *constants])}")
    position = {n: i for i, n in enumerate(function.arg_names)}
    if [n for n in function.arg_names if n in types] != list(types):
        raise ValueError(f"{name} takes its parameters in another order than {', '.join(types)}")
    source = ASTSource(
        fn=function,
        signature={n: _triton_type(types[n]) if n in types else "constexpr" for n in function.arg_names},
        constexprs={(position[n],): value for n, value in constants.items()},
        attrs={(position[n],): [["tt.divisibility", multiple]] for n, multiple in job["multiples"].items()},
    )
    options = {"num_warps": job["warps"], "num_stages": job["stages"], "num_ctas": job["cluster"]}
    target = GPUTarget("cuda", int(re.sub(r"\D", "", architecture)), 32) if is_cuda else GPUTarget("hip", architecture, 64)
    made = triton.compile(source, target=target, options=options)
    metadata = made.metadata
    if getattr(metadata, "global_scratch_size", 0):
        raise ValueError(f"{name} wants {metadata.global_scratch_size} bytes of memory of its own, which nothing gives it")
    text = made.asm["ptx" if is_cuda else "amdgcn"]
    columns = getattr(metadata, "tmem_size", 0) or 0
    found = {"symbol": metadata.name, "threads": metadata.num_warps * target.warp_size, "trailing": 2}
    if is_cuda:
        code = made.asm["cubin"]
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        registers, stack = _usage_of_cubin(tool, code)
        is_trap = "trap;" in text and text.count(";\n") < _FEWEST_INSTRUCTIONS
    else:
        code = made.asm["hsaco"]
        registers, stack = _number(text, r"\.vgpr_count:\s+(\d+)"), _number(text, r"\.private_segment_fixed_size:\s+(\d+)")
        is_trap = False
    if is_trap and columns <= 512:
        raise ValueError(f"{name} was compiled to nothing but a trap: it asks for more than {architecture} has")
    return code, found | {"resources": _resources(registers, metadata.shared, columns, stack, code)}


def compile_cuda(job: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The same of a kernel in CUDA C++."""
    file, _, name = job["source"].rpartition(":")
    architecture = job["target"].removeprefix("sm_")
    path = Path(__file__).parent / CudaSource(file, name).file
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "code.cubin")
        command = [
            "nvcc",
            "-std=c++20",
            "-O3",
            "-cubin",
            f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
            "--resource-usage",
            "--keep",
            f"--keep-dir={folder}",
        ]
        command += [f"-D{n}={int(v) if isinstance(v, bool) else v}" for n, v in job["constants"].items()]
        # By its bare name, from its folder: a path would be part of the code.
        done = subprocess.run([*command, "-o", str(out), path.name], cwd=path.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["nvcc failed"]
            raise ValueError(lines[0])
        code = out.read_bytes()
        allocations = re.findall(r"tcgen05\.alloc[^;]*, (\d+);", Path(folder, f"{path.stem}.ptx").read_text())
    of_kernel = done.stderr.partition(f"'{name}'")[2]
    static = _number(of_kernel, r"(\d+) bytes smem")
    registers, stack = _number(of_kernel, r"Used (\d+) registers"), _number(of_kernel, r"(\d+) bytes stack frame")
    resources = _resources(registers, static + job["shared"], sum(map(int, allocations)), stack, code)
    return code, {"symbol": name, "threads": 32 * job["warps"], "trailing": 0, "resources": resources}


def _triton_type(name: str) -> str:
    star, short = ("*", name[1:]) if name.startswith("*") else ("", name)
    return star + _TRITON_TYPES.get(short, short)


def _usage_of_cubin(tool: Path, code: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return _number(text, r"REG:(\d+)"), _number(text, r"STACK:(\d+)")


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _resources(registers: int, shared: int, columns: int, stack: int, code: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(code).hexdigest()
    return {"registers": registers, "shared": shared, "tensor_columns": columns, "stack": stack, "sha256": digest}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # compilers print
    for line in sys.stdin:
        job = json.loads(line)
        try:
            code, found = compile_triton(job) if job["compiler"] == "triton" else compile_cuda(job)
            Path(job["out"]).write_bytes(code)
        except Exception as error:
            found = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
