"""One engine with one model, in a process of its own: JSON lines in, JSON lines out.

usage: python benchmarks/cpu_worker.py NAME    (ours, llama-cpp, vllm; `benchmarks/cpu.py` starts it)

It says hello with the engine's version, or what is missing. The first line says what to open; each line after it is a batch to run, whose
answer has every token with its time and what the process keeps resident. In between it waits in a read, so that contenders take turns.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TextIO

from cpu_driver import Setup, load


def serve(name: str, answers: TextIO) -> None:
    def say(**message: object) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        module = load(name)
        say(version=module.version())
    except (ImportError, OSError) as missing:  # a shared library that does not load is an OSError
        say(missing=str(missing))
        return
    try:
        line = sys.stdin.readline()
        if not line:
            return
        engine = module.Engine(Setup(**json.loads(line)))
        say(ready=True)
        for line in sys.stdin:
            batch = json.loads(line)
            prompts = batch["prompts"] if "prompts" in batch else [engine.encode(batch["text"])]
            tokens = engine.generate(prompts, batch["new_tokens"])
            say(tokens=tokens, resident=resident())
    except Exception as failure:
        traceback.print_exc()
        say(failed=f"{type(failure).__name__}: {str(failure).strip() or 'no word why'}".splitlines()[0])


def resident() -> dict[str, int]:
    """Bytes of memory that this process has: its own, and pages of files that other processes may have too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    found = {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssFile", "RssShmem")}
    return {"all": found["VmRSS"], "own": found["RssAnon"] + found["RssShmem"], "file": found["RssFile"]}


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    serve(sys.argv[1], own)
