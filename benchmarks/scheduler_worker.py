"""One scheduler under one case, in a process of its own: JSON lines in, JSON lines out.

usage: python benchmarks/scheduler_worker.py NAME    (ours, tokenspeed, vllm; `benchmarks/scheduler.py` starts it)

It says hello with the scheduler's version, or what is missing; it is told a case and makes it ready; then each line asks for a round of
measurement. It holds still in between, so contenders can take turns.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from typing import Any, TextIO

from scheduler_driver import load
from scheduler_measure import KINDS, Case


def serve(name: str, answers: TextIO) -> None:
    def say(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        module = load(name)
        say(version=module.version())
    except ImportError as missing:
        say(missing=str(missing))
        return
    try:
        line = sys.stdin.readline()
        if not line:
            return
        gc.disable()  # for good: a process lives for one case
        measure = KINDS[(case := Case(**json.loads(line))).kind](module, case)
        gc.collect()
        gc.freeze()
        say(ready=True)
        while sys.stdin.readline():
            gc.collect()
            say(series=measure())
    except Exception as failure:
        traceback.print_exc()
        say(failed=f"{type(failure).__name__}: {failure}")


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    serve(sys.argv[1], own)
