"""The engine's process: takes requests from front ends, runs steps as long as there are any, and sends what they bring.

`python -m tsrun.serve.engine_process SPEC` is started by `engine_client.py`, and ends with its parent. One thread does it all: a step's
computing needs no interpreter, and messages move in a thread of ZeroMQ's own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import math
import os
import signal
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import msgspec
import zmq

from tskernels.waiting import spin_briefly
from tsrun.engine import Engine
from tsrun.errors import MachineError, RequestError, TsrunError
from tsrun.generate import open_engine
from tsrun.generation import EmbeddingRequest, Event, GenerationRequest
from tsrun.limits import LimitOptions
from tsrun.memory import keep_for_good
from tsrun.serve.loading import loading_progress
from tsrun.serve.logs import LogOptions, configure, fields
from tsrun.serve.messages import (
    Abort,
    Accepted,
    Embed,
    Events,
    Follow,
    FromEngine,
    Hello,
    Over,
    Pages,
    Passed,
    Ready,
    Refused,
    Statistics,
    Stop,
    Submit,
    Unfollow,
    from_front,
    packed,
)
from tsrun.serve.page_followers import PageFollowers
from tsrun.serve.progress import Progress, look_seconds

_POLL_MS = 500  # between looks at whether the parent is there, while nothing is to be done
_COMPILING_MS = 2  # and while grammars are compiled
_STATISTICS_SECONDS = 0.2
_COMPILERS = 2

Front = bytes  # the identity of a front end's socket
STACKS_SIGNAL = signal.SIGUSR1
"""Writes what all threads of the process are doing into the file `stacks` of its spec, whatever it is doing."""
log = logging.getLogger("tsrun.serve.engine")


class Spec(msgspec.Struct):
    """The command line of the process, as JSON."""

    path: str
    address: str
    limits: LimitOptions
    threads: int | None
    parent: int
    follows_pages: bool
    stacks: str
    watchdog_seconds: float
    logs: LogOptions


@dataclass(slots=True)
class Compiling:
    """A request whose grammar is compiled. since: when that began, None while it waits for others to be compiled."""

    what: GenerationRequest
    identity: str
    compiled: Future[None]
    since: float | None = None


class Failed(msgspec.Struct):
    """Why the process ended, on its standard output."""

    where: str
    what: str
    mend: str
    exit_code: int


class EngineServer:
    """Between the sockets of the front ends and an engine. `run` returns when it was told to stop, or the parent has gone."""

    def __init__(self, engine: Engine, socket: zmq.Socket[bytes], ready: Ready, spec: Spec) -> None:
        self._engine = engine
        self._socket = socket
        self._ready = ready
        self._parent = spec.parent
        self._patience = spec.watchdog_seconds or math.inf
        self._progress = Progress(self._patience)
        self._looked = time.monotonic()
        self._fronts: set[Front] = set()
        self._asked: dict[int, tuple[Front, int]] = {}  # of the engine's requests: who asked, and their number
        self._numbers: dict[tuple[Front, int], int] = {}  # the other way
        self._identities: dict[int, str] = {}  # what logs call them
        self._compiling: dict[tuple[Front, int], Compiling] = {}
        self._compiler = ThreadPoolExecutor(_COMPILERS, "tsrun-grammars")
        self._pages: PageFollowers[tuple[Front, int]] = PageFollowers()
        self._statistics = Statistics(engine.load())
        self._told = 0.0
        self._stop: Stop | None = None

    def run(self) -> None:
        while os.getppid() == self._parent:
            for front, data in self._messages(wait=not self._engine.has_work and self._stop is None):
                self._take(front, data)
            self._submit_compiled()
            if self._stop is not None and (self._stop.at_once or not (self._engine.has_work or self._compiling)):
                return
            if self._engine.has_work:
                began = time.perf_counter()
                events = self._engine.step()
                self._statistics.steps += 1
                self._statistics.busy_seconds += time.perf_counter() - began
                self._give(events)
                self._pages.take(self._engine.page_events())
            elif self._compiling:
                self._give([])  # so that nobody takes it for stuck
            self._tell_pages()
            self._look()

    @property
    def has_fronts(self) -> bool:
        """Whether anybody is there who will say when to end."""
        return bool(self._fronts)

    def tell_all(self, message: FromEngine) -> None:
        for front in self._fronts:
            self._send(front, message)

    def _messages(self, *, wait: bool) -> Iterator[tuple[Front, bytes]]:
        if wait and not self._socket.poll(_COMPILING_MS if self._compiling else _POLL_MS):
            return
        with contextlib.suppress(zmq.Again):
            while True:
                front, data = self._socket.recv_multipart(zmq.NOBLOCK)
                yield front, data

    def _take(self, front: Front, data: bytes) -> None:
        match from_front(data):
            case Hello():
                self._fronts.add(front)
                self._send(front, self._ready)
                self._send(front, Events([], time.monotonic(), self._statistics))
            case Submit(request, what, identity):
                if what.constraint is None:
                    self._submit(front, request, what, identity)
                else:  # others need not wait until its grammar is compiled
                    compiled = self._compiler.submit(self._engine.prepare, what.constraint)
                    self._compiling[front, request] = Compiling(what, identity, compiled)
            case Embed(request, embedding, identity):
                self._submit(front, request, embedding, identity)
            case Abort(request):
                aborted = self._numbers.get((front, request))
                if aborted is not None:
                    self._engine.abort(aborted)
                elif (compiling := self._compiling.pop((front, request), None)) is not None:
                    compiling.compiled.cancel()  # unless it has begun, and then it is over soon: others wait for none that nobody wants
                    self._send(front, Events([Event(request, (), "", "abort")], time.monotonic()))
            case Follow(follower):
                self._pages.follow((front, follower))
            case Passed(follower):
                self._pages.passed((front, follower))
            case Unfollow(follower):
                self._pages.unfollow((front, follower))
            case Stop() as stop:
                self._stop = stop

    def _submit(self, front: Front, request: int, what: GenerationRequest | EmbeddingRequest, identity: str) -> None:
        try:
            number = self._engine.submit(what)
        except RequestError as error:
            self._send(front, Refused(request, error.where, error.what, error.mend))
        except Exception as error:  # one request's failure is no other's
            log.exception("internal error", extra=fields(request_id=identity))
            self._send(front, Refused(request, "", f"internal error: {type(error).__name__}: {error}", ""))
        else:
            self._asked[number] = front, request
            self._numbers[front, request] = number
            self._identities[number] = identity
            self._send(front, Accepted(request))

    def _submit_compiled(self) -> None:
        for (front, request), one in list(self._compiling.items()):
            if one.compiled.done():
                del self._compiling[front, request]
                self._submit(front, request, one.what, one.identity)  # which says what is wrong with it

    def _look(self) -> None:
        """Now and then: end what makes no progress. The others go on."""
        now = time.monotonic()
        if now - self._looked < look_seconds(self._patience):
            return
        self._looked = now
        running = self._engine.running()
        for one in self._progress.stuck(running, self._statistics.steps, now):
            log.error(
                "the watchdog ends a request that steps do not bring forward",
                extra=fields(
                    request_id=self._identities[one.request],
                    seconds=self._patience,
                    steps=self._statistics.steps,
                    stuck=one,
                    running=running,
                    load=self._engine.load(),
                ),
            )
            line = f"the watchdog ended it: the engine went on for {self._patience:g} s without it"
            self._engine.fail(one.request, MachineError("", line, "send it again when there is less to do"))
            self._statistics.stuck += 1
        for (front, request), waiting in list(self._compiling.items()):
            if waiting.since is None:
                waiting.since = now if waiting.compiled.running() else None
            elif now - waiting.since > self._patience:
                del self._compiling[front, request]
                what = f"it was not compiled within {self._patience:g} s"
                self._send(front, Refused(request, "constraint", what, "give a simpler one"))

    def _give(self, events: list[Event]) -> None:
        """Send events to those who asked, one message each; statistics go to all, not with every step."""
        parts: dict[Front, list[Event]] = defaultdict(list)
        for event in events:
            front, request = self._asked[event.request]
            parts[front].append(replace(event, request=request))
            self._statistics.generated_tokens += len(event.token_ids)
            if event.finish_reason is not None:
                del self._asked[event.request], self._numbers[front, request], self._identities[event.request]
        now = time.monotonic()
        telling = now - self._told > _STATISTICS_SECONDS or not (self._engine.has_work or self._compiling)
        if telling:
            self._told = now
            self._statistics.load = self._engine.load()
            self._statistics.running = self._engine.running()
            self._statistics.speculated = self._engine.speculated
        for front in self._fronts if telling else parts:
            self._send(front, Events(parts[front], now, self._statistics if telling else None))

    def _tell_pages(self) -> None:
        for (front, follower), pages in self._pages.due():
            self._send(front, Pages(follower, *pages))

    def _send(self, front: Front, message: FromEngine) -> None:
        self._socket.send_multipart([front, packed(message)])


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the front end too, which decides
    began = time.perf_counter()
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    configure(spec.logs)
    server: EngineServer | None = None

    def end_unless_asked(number: int, _: FrameType | None) -> None:
        if server is None or not server.has_fronts:  # else who is there says when: a service manager sends it to all processes
            sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end_unless_asked)
    spin_briefly()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.SNDHWM, 0)  # a front end that is slow must not lose events
    try:
        with (
            open(spec.stacks, "w") as stacks,
            open_engine(Path(spec.path), spec.limits, spec.threads, loading_progress(), follows_pages=spec.follows_pages) as engine,
        ):
            faulthandler.register(STACKS_SIGNAL, stacks)
            limits = engine.limits
            ready = Ready(
                artifact=spec.path,
                max_context=limits.max_context,
                max_sequences=limits.max_sequences,
                num_pages=engine.num_pages,
                page_size=limits.page_size,
                load_seconds=time.perf_counter() - began,
            )
            keep_for_good()
            socket.bind(spec.address)
            server = EngineServer(engine, socket, ready, spec)
            try:
                server.run()
            except Exception as error:
                server.tell_all(Over(str(error)))
                raise
            finally:
                faulthandler.unregister(STACKS_SIGNAL)
    except TsrunError as error:
        if os.environ.get("TSRUN_DEBUG"):
            traceback.print_exc()
        print(msgspec.json.encode(Failed(error.where, error.what, error.mend, error.exit_code)).decode())
        return error.exit_code
    except Exception:
        log.exception("the engine has failed")
        return 1
    finally:
        context.destroy(linger=1000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
