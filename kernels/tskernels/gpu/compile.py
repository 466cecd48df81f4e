"""Machine code of functions, made ahead of time on any machine: several at once, and kept by their keys in the user's cache folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue

from tskernels.cache_folder import cache_folder
from tskernels.gpu.functions import Function, MachineCode, resources_of
from tskernels.target import Target

Progress = Callable[[int, int], None]
"""(done, total)"""
FOLDER = "kernels"


class CompilationFailed(Exception):
    """A function that a compiler refused, or that it ended over; one line."""


def compile_functions(functions: Sequence[Function], target: Target, progress: Progress = lambda done, total: None) -> list[MachineCode]:
    """In the functions' order. Raises CompilationFailed."""
    folder = cache_folder() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    keys = [function.key(target) for function in functions]
    found = {key: machine for key in keys if (machine := _cached(folder, key)) is not None}
    jobs: SimpleQueue[tuple[str, Function]] = SimpleQueue()
    wanted = {key: function for key, function in zip(keys, functions, strict=True) if key not in found}
    for item in wanted.items():
        jobs.put(item)
    progress(0, len(wanted))

    def work() -> None:
        with _Worker() as worker:
            while True:
                try:
                    key, function = jobs.get_nowait()
                except Empty:
                    return
                found[key] = machine = worker.compile(function, target)
                _keep(folder, key, machine)
                progress(sum(k in found for k in wanted), len(wanted))

    if wanted:
        count = min(len(wanted), os.cpu_count() or 1)
        with ThreadPoolExecutor(count, "compile") as pool:
            for future in [pool.submit(work) for _ in range(count)]:
                future.result()
    for function, key in zip(functions, keys, strict=True):
        excess = found[key].excess(target)
        if excess:
            raise CompilationFailed(f"{function.name} {excess}")
    return [found[key] for key in keys]


class _Worker:
    """A process that compiles, and is started again when a compiler ended it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tsc-kernels-")
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
        self._folder.cleanup()

    def compile(self, function: Function, target: Target) -> MachineCode:
        out = Path(self._folder.name, "code")
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps({**function.record(), "target": str(target), "out": str(out)}), file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            process.wait()
            said = Path(self._folder.name, "said").read_text(errors="replace").strip().splitlines()
            why = next((line for line in said if "ERROR" in line or "error" in line), said[-1] if said else "without a word")
            self.__exit__()
            raise CompilationFailed(f"{function.name} for {target}: {function.compiler} ended itself ({why})")
        answer = json.loads(line)
        if "error" in answer:
            raise CompilationFailed(f"{function.name} for {target}: {answer['error']}")
        resources = resources_of(answer["resources"])
        return MachineCode(out.read_bytes(), answer["symbol"], answer["threads"], answer["trailing"], resources)

    def _start(self) -> subprocess.Popen[str]:
        # Lines would say where the sources are, and Triton keeps what it compiled by paths.
        made = {"TRITON_DISABLE_LINE_INFO": "1", "TRITON_CACHE_DIR": str(Path(self._folder.name, "triton"))}
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | made
        command = [sys.executable, "-m", "tskernels.gpu.compile_worker"]
        with Path(self._folder.name, "said").open("w") as said:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8", env=environment
            )


def _cached(folder: Path, key: str) -> MachineCode | None:
    try:
        record = json.loads((folder / f"{key}.json").read_text())
        code = (folder / f"{key}.bin").read_bytes()
        return MachineCode(code, record["symbol"], record["threads"], record["trailing"], resources_of(record["resources"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(folder: Path, key: str, machine: MachineCode) -> None:
    """The record last: what has one is whole."""
    record = {n: getattr(machine, n) for n in ("symbol", "threads", "trailing")} | {"resources": asdict(machine.resources)}
    for suffix, data in (("bin", machine.code), ("json", json.dumps(record).encode())):
        temporary = folder / f".{key}.{os.getpid()}"
        temporary.write_bytes(data)
        temporary.replace(folder / f"{key}.{suffix}")
