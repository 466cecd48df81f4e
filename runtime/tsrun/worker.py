"""A rank other than 0: opens its part of the artifact, then runs the steps that rank 0 sends until it says stop.

`python -m tsrun.worker SPEC` is started by `tsrun.ranks`; under torchrun `serve` runs in the process that was launched.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_POLL_SECONDS = 1.0


def serve(path: Path, rank: int, store_file: Path | None, threads: int, reached: Callable[[str], None], target: str | None = None) -> None:
    """Be a rank until rank 0 says stop. `reached` is called with `verified` and `bound`."""
    from tskernels.communicator import use
    from tsrun.artifact import PROGRAM, open_artifact
    from tsrun.executor import Executor
    from tsrun.gpu.opening import device_for
    from tsrun.process_group import Control, join, share_limits
    from tsrun.rebinding import program_for
    from tsrun.verification import files_read_before

    artifact = open_artifact(path, rank=rank, memory=files_read_before())
    artifact.require_weights()
    program = program_for(artifact.file(PROGRAM), target)
    reached("verified")
    device = device_for(artifact.manifest.target, target, rank)
    where = dict(artifact.manifest.axes), rank, store_file, program.collective_axes
    joined = join(*where, threads, device=device)
    limits = share_limits(None)
    control = Control()
    executor = Executor(
        artifact, program, rank, limits, threads, joined.memory, device=device, peers={} if joined.peers is None else joined.peers.by_axis
    )
    reached("bound")
    with use(joined.mesh):
        while (step := control.receive()) is not None:
            executor.run(step)
    executor.close()
    joined.leave()


def serve_launched(path: Path, threads: int | None) -> None:
    """Be the rank that a launcher such as torchrun made this process."""
    from tsrun.artifact import read_manifest
    from tsrun.launch import launched
    from tsrun.ranks import check_launch
    from tsrun.threads import share_of_threads

    manifest = read_manifest(path)
    check_launch(manifest.ranks)
    launch = launched()
    assert launch is not None
    serve(path, launch[0], None, share_of_threads(threads, manifest.ranks), lambda milestone: None)


def main() -> int:
    """Run as a process of `tsrun.ranks`, which reads one JSON line a milestone from the standard output."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, or a service manager, reaches the whole group; rank 0 decides what it means
        signal.signal(number, signal.SIG_IGN)
    report = _take_stdout()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    spec: dict[str, Any] = json.loads(sys.argv[1])
    from tskernels.waiting import spin_briefly
    from tsrun.errors import TsrunError

    spin_briefly()
    try:
        where = Path(spec["path"]), spec["rank"], Path(spec["store_file"])
        serve(*where, spec["threads"], lambda milestone: report({"reached": milestone}), spec["target"])
    except TsrunError as error:
        report({"error": error.line})
        return error.exit_code
    except Exception as error:
        if os.environ.get("TSRUN_DEBUG"):
            traceback.print_exc()
        # Of a collective: most likely another rank ended first, and its reason is the one to tell.
        secondary = "yes" if isinstance(error, RuntimeError) else "no"
        report({"error": " ".join(f"{type(error).__name__}: {error}".split()), "secondary": secondary})
        return 3
    return 0


def _take_stdout() -> Callable[[dict[str, str]], None]:
    """Keep the standard output for reports; what libraries print goes to the standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(record: dict[str, str]) -> None:
        try:
            print(json.dumps(record), file=stream, flush=True)
        except BrokenPipeError:  # rank 0 is gone; the watch ends this process
            os._exit(3)

    return report


def _end_with_parent(parent: int) -> None:
    """End this process, whatever it is doing, when rank 0's process closes our standard input or is gone."""
    from tsrun.segment_names import take_away

    while True:
        ready, _, _ = select.select([0], [], [], _POLL_SECONDS)
        if (ready and not os.read(0, 1)) or os.getppid() != parent:
            take_away()
            os._exit(0)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # not through the interpreter's end: gloo's threads may still wait for ranks that are gone
