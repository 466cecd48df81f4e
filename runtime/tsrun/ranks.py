"""Rank 0's view of all ranks: starts the worker processes, runs a step on every rank, and notices a worker that ends."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsrun.artifact import PROGRAM, Manifest, open_artifact, read_manifest
from tsrun.draft_model import DraftModel
from tsrun.errors import RankError, UsageError
from tsrun.executor import Executor
from tsrun.gpu.opening import cache_memory, device_for
from tsrun.jax_steps import fitting, is_for_jax, require_no_threads
from tsrun.launch import launched
from tsrun.limits import LimitOptions, row_bytes, settle
from tsrun.output import Output
from tsrun.own_folder import OwnFolder
from tsrun.rebinding import program_for
from tsrun.sampler import Draws
from tsrun.states import state_bytes
from tsrun.step import Step
from tsrun.threads import share_of_threads
from tsrun.verification import files_read_before

if TYPE_CHECKING:
    from tsrun.chains import Chain
    from tsrun.embedding import Embeds
    from tsrun.process_group import Group

_NOTICE_SECONDS = 5.0  # between a connection that broke and the end of the process behind it
_END_SECONDS = 5.0
_START_SECONDS = 120.0  # that a rank may come later than rank 0 to where all of them have to
_GATHER_SECONDS = 0.2  # so that of several ends the one that caused the others is among them


class Worker:
    """One rank's process. It ends when its standard input closes, so it can not outlive this process."""

    def __init__(self, path: Path, rank: int, store_file: Path, threads: int, target: str | None) -> None:
        self.rank = rank
        spec = json.dumps({"path": str(path), "rank": rank, "store_file": str(store_file), "threads": threads, "target": target})
        command = [sys.executable, "-m", "tsrun.worker", spec]
        # Without a buffer: what has been read of a line and not been asked for would not be waited for.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def expect(self, milestone: str) -> None:
        """Wait until the worker reports a milestone; RankError when it does not, or with its own words when it ends instead."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], _START_SECONDS)[0]:
            what = f"its process ({self.process.pid}) is not {milestone} {_START_SECONDS:.0f} s after that of rank 0"
            raise RankError(f"rank {self.rank}", what, "start again")
        line = self.process.stdout.readline()
        report: dict[str, Any] = json.loads(line) if line else {}
        if report.get("reached") != milestone:
            raise self._error(report, "while it started")

    def error_after_end(self) -> tuple[bool, RankError]:
        """Why the worker ended, which it has, and whether that only followed from the end of another rank."""
        assert self.process.stdout is not None
        reports = [json.loads(line) for line in self.process.stdout]
        report: dict[str, Any] = reports[-1] if reports else {}
        return report.get("secondary") == "yes", self._error(report, "while the engine needed it")

    def end(self) -> None:
        """Wait for the worker a little, then kill it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _error(self, report: dict[str, Any], when: str) -> RankError:
        where = f"rank {self.rank}"
        if "error" in report:
            return RankError(where, str(report["error"]))
        code = self.process.wait(_END_SECONDS)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return RankError(where, f"its process ended {when} ({how})", "start again; if it was killed for memory, give less --cache-bytes")


class Ranks:
    """All ranks of an artifact, this process being rank 0. With one rank there is no other process and no group.

    A step is started, then its result is taken, in turns. With a depth of 1 it runs within `start`; else in a thread, while the caller
    does something else, or where an executor runs ahead, on its device: then the next may be started before the result is taken.
    """

    def __init__(self, path: Path, options: LimitOptions, *, threads: int | None, progress: Callable[[int, int], None] | None) -> None:
        manifest = read_manifest(path)
        self._workers: list[Worker] = []
        self._group: Group | None = None
        self._folder: OwnFolder | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: deque[Callable[[], Output]] = deque()  # what waits for steps, the oldest first
        self._step: Future[Output] = Future()
        processes = num_processes(manifest)
        started = check_launch(processes)
        try:
            share = share_of_threads(threads, processes)
            if processes > 1 and not started:
                self._start_workers(path, processes, share, options.target)
            own = 0 if processes == manifest.ranks else None
            self.artifact = open_artifact(path, rank=own, progress=progress, memory=files_read_before())
            self.artifact.require_weights()
            if is_for_jax(manifest):
                require_no_threads(threads)
                options = fitting(options, self.artifact)
            self.program = program = program_for(self.artifact.file(PROGRAM), options.target)
            self.draft = None if options.draft is None else DraftModel(Path(options.draft), self.artifact, options.branches or 0)
            rows = row_bytes((cache.dtype, cache.page, cache.window) for cache in program.caches)
            if self.draft is not None:  # beside one of the ranks, which all have equal caches
                rows[0] = rows.get(0, 0) + self.draft.row_bytes
            device = device_for(manifest.target, options.target, 0)
            self.limits = settle(
                options,
                context=manifest.context,
                row_bytes=rows,
                state_bytes=state_bytes(program.states),
                ranks=manifest.ranks,
                token_multiple=lcm(*(plan.token_multiple for plan in program.plans)),
                cache_memory=None if device is None else cache_memory(device, self.artifact.weights_file(0)),
            )
            if processes > 1:
                self._expect("verified")
                from tsrun.process_group import Group  # late: one rank alone has no use for torch.distributed

                where = dict(manifest.axes), self._store_file, program.collective_axes
                self._group = Group(*where, share, self.limits, device=device)
            memory = None if self._group is None else self._group.memory
            peers = {} if self._group is None else self._group.peers
            what = self.artifact, program, 0, self.limits, share, memory
            self._executor = Executor(*what, screen=options.screen, device=device, peers=peers)
            if self.draft is not None:
                self.draft.bind(self.limits, share, self._executor)
            self.runs_ahead = options.depth > 1 and self._group is None and self._executor.runs_ahead
            if options.depth > 1:
                self._thread = ThreadPoolExecutor(1, "tsrun-step")
            self._expect("bound")
        except RuntimeError as error:  # of a group that another rank has left meanwhile: its own words say more
            explained = self._explained(error)
            self._abandon()
            raise explained from error
        except BaseException:
            self._abandon()
            raise

    def start(self, step: Step, draws: Draws | Embeds | None) -> None:
        """Begin a step on every rank, and draw tokens here, or take embeddings. The result of the one before is no longer valid."""
        if self.runs_ahead:
            self._ahead.append(self._executor.start(step, draws))
        else:
            self._begin(lambda: self._run(step, draws))

    def start_chain(self, chain: Chain) -> None:
        """Begin a chain of guesses, in the place of a step: of the artifact that drafts, where there is one, or by the ranks' own entry."""
        self._begin(lambda: self._run_chain(chain))

    def _begin(self, work: Callable[[], Output]) -> None:
        if self._thread is not None:
            self._step = self._thread.submit(work)
            return
        self._step = Future()
        try:
            self._step.set_result(work())
        except BaseException as error:
            self._step.set_exception(error)

    def result(self) -> Output:
        """The output of the step that was started, or what went wrong with it; of several the first's."""
        if self._ahead:
            return self._ahead.popleft()()
        try:
            return self._step.result()
        except BaseException:
            if not self._step.done():  # interrupted: without the others the step can not go on, so that it need not be waited for long
                self._kill()
                wait([self._step])
                self._abandon()
            raise

    def _run(self, step: Step, draws: Draws | Embeds | None) -> Output:
        if self._group is None:
            return self._executor.run(step, draws)
        try:
            with self._group.running(step):
                return self._executor.run(step, draws)
        except RuntimeError as error:
            explained = self._explained(error)
            self._abandon()
            raise explained from error
        except BaseException:  # interrupted in the middle of a step: the others wait in a collective, and would not hear STOP
            self._abandon()
            raise

    def _run_chain(self, chain: Chain) -> Output:
        step: Step | None = chain.first
        while step is not None:
            began = time.perf_counter()
            output = self._run(step, None) if self.draft is None else self.draft.run(step)
            step = chain.take(output, time.perf_counter() - began)
        return output

    def close(self) -> None:
        """Tell the other ranks to stop, and wait for their processes, and for what is under way. May be called again."""
        with contextlib.suppress(RuntimeError):  # of a device that is gone
            while self._ahead:
                self._ahead.popleft()()
        if self._thread is not None:
            self._thread.shutdown()  # when the step that runs is over
        group, self._group = self._group, None
        if group is not None:
            try:
                group.stop()
            except RuntimeError:  # a rank is gone already, which is what was wanted
                self._kill()
            self._executor.close()
            group.leave()
        self._end_workers()
        if group is not None:
            group.give_back()

    @property
    def can_run_head(self) -> bool:
        """Whether the head of a step can be run again, here alone."""
        return self._group is None and self._executor.programs.can_run_head

    def worker_pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    @property
    def _store_file(self) -> Path | None:
        return None if self._folder is None else self._folder.path / "store"

    def _start_workers(self, path: Path, ranks: int, threads: int, target: str | None) -> None:
        # A file in a folder that is ours alone: a port would be open to everyone on the machine.
        self._folder = OwnFolder()
        assert self._store_file is not None
        for rank in range(1, ranks):
            self._workers.append(Worker(path.resolve(), rank, self._store_file, threads, target))

    def _expect(self, milestone: str) -> None:
        for worker in self._workers:
            worker.expect(milestone)

    def _explained(self, error: Exception) -> Exception:
        """The end of a worker that explains an error of the group, or else the error itself."""
        deadline = time.monotonic() + _NOTICE_SECONDS
        while self._workers and time.monotonic() < deadline:
            if any(worker.process.poll() is not None for worker in self._workers):
                time.sleep(_GATHER_SECONDS)
                ended = [worker.error_after_end() for worker in self._workers if worker.process.poll() is not None]
                return min(ended, key=lambda end: end[0])[1]
            time.sleep(0.02)
        return RankError("ranks", f"a collective failed ({error})", "start again") if self._group is not None else error

    def _abandon(self) -> None:
        """Leave the group without a word to the other ranks, which may not listen."""
        self._kill()
        group, self._group = self._group, None
        if group is not None:
            group.leave()
        self._end_workers()

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()

    def _end_workers(self) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()
        if self._folder is not None:
            self._folder.close()
            self._folder = None


def num_processes(manifest: Manifest) -> int:
    """One a rank, but where one has all devices."""
    return 1 if is_for_jax(manifest) else manifest.ranks


def check_launch(ranks: int) -> bool:
    """Whether a launcher started the ranks; UsageError when it started another number of them."""
    launch = launched()
    if launch is None:
        return False
    if launch[1] != ranks:
        what = f"the artifact has {ranks} ranks, the launcher started {launch[1]}"
        raise UsageError("WORLD_SIZE", what, f"start {ranks} processes, or none and let tsrun start them")
    return True
