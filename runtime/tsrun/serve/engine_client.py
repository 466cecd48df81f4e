"""A front end's side of the engine: starts its process, sends requests, and gives each its events as they come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zmq
import zmq.asyncio

from tsrun.errors import MachineError, RequestError, TsrunError
from tsrun.generation import EmbeddingRequest, Event, GenerationRequest, PageEvent
from tsrun.limits import LimitOptions
from tsrun.own_folder import OwnFolder
from tsrun.serve.engine_process import STACKS_SIGNAL, Failed, Spec
from tsrun.serve.logs import LogOptions
from tsrun.serve.messages import (
    Abort,
    Accepted,
    Embed,
    Events,
    Follow,
    FromFront,
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
    from_engine,
    packed,
)

ENGINE_MODULE = "tsrun.serve.engine_process"
"""What runs in the engine's process."""
_END_SECONDS = 10.0
_LOOK_SECONDS = 0.05
_STACKS_SECONDS = 2.0


class EngineElsewhere:
    """An engine that another process has started, looks after, and ends."""

    def __init__(self, address: str, watchdog_seconds: float) -> None:
        self.address = address
        self.watchdog_seconds = watchdog_seconds

    @property
    def has_bound(self) -> bool:
        return Path(self.address.removeprefix("ipc://")).exists()


class EngineProcess:
    """The process of an engine, which ends when this process does."""

    def __init__(
        self,
        path: Path,
        limits: LimitOptions,
        threads: int | None,
        logs: LogOptions,
        *,
        watchdog_seconds: float,
        follows_pages: bool = False,
    ) -> None:
        """watchdog_seconds: without progress, after which a request is ended, and the engine counts as stuck; 0 for never."""
        # Private: who can open the socket can ask for anything.
        self._folder = OwnFolder()
        self.address = f"ipc://{self._folder.path}/engine"
        self.watchdog_seconds = watchdog_seconds
        self._stacks = self._folder.path / "stacks"
        spec = Spec(
            path=str(path),
            address=self.address,
            limits=limits,
            threads=threads,
            parent=os.getpid(),
            follows_pages=follows_pages,
            stacks=str(self._stacks),
            watchdog_seconds=watchdog_seconds,
            logs=logs,
        )
        command = [sys.executable, "-m", ENGINE_MODULE, msgspec.json.encode(spec).decode()]
        # What it puts down there is taken away with the folder, also when it is killed.
        environment = os.environ | {"TMPDIR": str(self._folder.path)}
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def has_bound(self) -> bool:
        return (self._folder.path / "engine").exists()

    def error(self) -> TsrunError:
        """Why it has ended, in its own words where it had some."""
        assert self._process.stdout is not None
        lines = self._process.stdout.read().splitlines()
        if not lines:
            return MachineError("engine", f"its process {self.how_it_ended()}", "start the server again")
        failed = msgspec.json.decode(lines[-1], type=Failed)
        error = TsrunError(failed.where, failed.what, failed.mend)
        error.exit_code = failed.exit_code
        return error

    def how_it_ended(self) -> str:
        code = self._process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    async def stacks(self) -> str:
        """What its threads are doing, in Python; of a process that takes no signal, that it does not."""
        os.kill(self.pid, STACKS_SIGNAL)
        ends, before = time.monotonic() + _STACKS_SECONDS, ""
        while time.monotonic() < ends:
            await asyncio.sleep(_LOOK_SECONDS)
            found = self._stacks.read_text(errors="replace")
            if found and found == before:  # it has all been written
                return found
            before = found
        return before or "the process took no signal: it does not run"

    def state(self) -> str | None:
        """What the system says that it does, where it does say so: R runs, S and D wait, T was stopped."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return None
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("State:")), None)

    def stop_starting(self) -> None:
        """End it before it is ready."""
        if self.exit_code is None:
            self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._folder.close()


class Generation:
    """One request under way: an asynchronous iterator of what it brings. Leave it by `async with`, which aborts what has not ended."""

    def __init__(self, client: EngineClient, number: int, identity: str) -> None:
        self._client = client
        self._number = number
        self.identity = identity
        self.began = time.monotonic()
        self.num_tokens = 0
        self.cached_tokens = 0
        self.was_computed = False
        """Whether a step had some of it, as far as its events have told."""
        self._at_end: Callable[[], None] | None = None
        self._events: deque[Event | Exception] = deque()
        self._news = asyncio.Event()
        self._is_accepted = asyncio.Event()
        self.has_ended = False
        self.made_at = 0.0
        """When the oldest event of the last batch was made, by the machine's monotonic clock."""

    async def accepted(self) -> None:
        """Wait until it runs, or waits for room only; raises what iterating would where it is refused."""
        await self._is_accepted.wait()
        if self._events and isinstance(self._events[0], Exception):
            raise self._events[0]

    def accept(self) -> None:
        self._is_accepted.set()

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self._batches()

    async def _batches(self) -> AsyncIterator[list[Event]]:
        """Events, as many as have come since; raises RequestError where the request was refused, MachineError when the engine has gone."""
        ended = False
        while not ended:
            await self._news.wait()
            self._news.clear()
            batch: list[Event] = []
            while self._events:
                event = self._events[0]
                if isinstance(event, Exception):
                    if not batch:
                        raise event
                    self._news.set()  # what came before it goes first
                    break
                batch.append(event)
                self._events.popleft()
                ended = event.finish_reason is not None
            if batch:
                yield batch

    def put(self, event: Event | Exception, at: float) -> None:
        self.has_ended = self.has_ended or isinstance(event, Exception) or event.finish_reason is not None
        if isinstance(event, Event):
            self.num_tokens += len(event.token_ids)
            self.cached_tokens = max(self.cached_tokens, event.cached_tokens)
            self.was_computed = self.was_computed or (event.times is not None and event.times.started is not None)
        if not self._events:
            self.made_at = at
        self._events.append(event)
        self._news.set()
        self._is_accepted.set()
        if self.has_ended and self._at_end is not None:
            self._at_end()

    def when_ended(self, call: Callable[[], None]) -> None:
        """Now, or when the last event comes."""
        if self.has_ended:
            call()
        else:
            self._at_end = call

    def abort(self) -> None:
        if not self.has_ended:
            self._client.send(Abort(self._number))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()


class PageFeed:
    """What the prefix cache has: an asynchronous iterator of events, and whether they begin anew. Of an engine that follows pages."""

    def __init__(self, client: EngineClient, number: int) -> None:
        self._client = client
        self._number = number
        self._came: asyncio.Queue[Pages | Exception] = asyncio.Queue()  # one at most: the next is sent for

    async def __aiter__(self) -> AsyncIterator[tuple[list[PageEvent], bool]]:
        """Raises MachineError when the engine has gone."""
        while True:
            pages = await self._came.get()
            if isinstance(pages, Exception):
                raise pages
            yield pages.events, pages.anew
            self._client.send(Passed(self._number))

    def put(self, pages: Pages | Exception) -> None:
        self._came.put_nowait(pages)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.unfollow(self._number)


class EngineClient:
    """The connection to an engine. Of one event loop."""

    def __init__(self, engine: EngineProcess | EngineElsewhere) -> None:
        self._engine = engine
        self.process = engine if isinstance(engine, EngineProcess) else None
        """The engine's, where it is ours."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._generations: dict[int, Generation] = {}
        self._feeds: dict[int, PageFeed] = {}
        self._next = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.statistics: Statistics | None = None
        self.failure: str | None = None
        self.is_given_up = False
        """Whether somebody is ending it."""
        self.last_news = time.monotonic()

    @property
    def address(self) -> str:
        return self._engine.address

    @property
    def watchdog_seconds(self) -> float:
        return self._engine.watchdog_seconds

    async def connect(self) -> Ready:
        """Wait until the engine is ready. Raises its own error when its process ends instead."""
        while not self._engine.has_bound:
            if self.process is not None and self.process.exit_code is not None:
                raise self.process.error()
            await asyncio.sleep(_LOOK_SECONDS)
        self._socket.connect(self.address)
        self.send(Hello())
        ready = from_engine(await self._socket.recv())
        assert isinstance(ready, Ready)
        self._tasks = [asyncio.create_task(self._receive())]
        if self.process is not None:
            self._tasks.append(asyncio.create_task(self._watch(self.process)))
        return ready

    def submit(self, request: GenerationRequest | EmbeddingRequest, identity: str = "") -> Generation:
        """identity: what logs call it."""
        number = self._number()
        if not self._generations:
            self.last_news = time.monotonic()
        if isinstance(request, GenerationRequest):
            message: FromFront = Submit(number, request, identity)
        else:
            message = Embed(number, request, identity)
        self.send(message)  # which may fail, where a number has too many digits
        generation = self._generations[number] = Generation(self, number, identity)
        return generation

    def follow_pages(self) -> PageFeed:
        """Leave it by `async with`."""
        number = self._number()
        feed = self._feeds[number] = PageFeed(self, number)
        self.send(Follow(number))
        return feed

    def unfollow(self, number: int) -> None:
        if self._feeds.pop(number, None) is not None and self.failure is None:
            self.send(Unfollow(number))

    def _number(self) -> int:
        if self.failure is not None:
            raise MachineError("engine", self.failure, "start the server again")
        self._next += 1
        return self._next - 1

    def send(self, message: FromFront) -> None:
        if self._socket.closed:  # what is left of a request may end after it
            return
        # The future that it gives is done: the socket's queue is as long as memory. Not by another way: what comes would go unnoticed.
        self._socket.send(packed(message))

    @property
    def num_open(self) -> int:
        return len(self._generations)

    def open_requests(self) -> list[dict[str, object]]:
        """What is open, for the log."""
        now = time.monotonic()
        return [
            {"request_id": one.identity, "number": number, "seconds": round(now - one.began, 3), "tokens": one.num_tokens}
            for number, one in self._generations.items()
        ]

    @property
    def quiet_seconds(self) -> float:
        """How long the engine has said nothing while it had something to do; 0 while it has nothing."""
        return time.monotonic() - self.last_news if self._generations else 0.0

    async def close(self, *, at_once: bool = False) -> None:
        """Let the engine end what is open, or abort it; then end its process, where it is ours."""
        for task in self._tasks:
            task.cancel()
        if self.process is not None:
            if not self._tasks:
                self.process.stop_starting()
            elif self.failure is None:
                with contextlib.suppress(zmq.ZMQError):
                    self.send(Stop(at_once))
            await asyncio.to_thread(self.process.end)
        self._socket.close()
        self._context.destroy(linger=0)

    async def _receive(self) -> None:
        while True:
            data = await self._socket.recv()
            if not self._generations:
                self.last_news = time.monotonic()
            match from_engine(data):
                case Events(events, at, statistics):
                    self.last_news = time.monotonic()
                    self.statistics = statistics or self.statistics
                    for event in events:
                        self._put(event.request, event, at, ends=event.finish_reason is not None)
                case Accepted(request):
                    if request in self._generations:
                        self._generations[request].accept()
                case Refused(request, where, what, mend):
                    self._put(request, RequestError(where, what, mend), time.monotonic(), ends=True)
                case Pages(follower) as pages:
                    if follower in self._feeds:
                        self._feeds[follower].put(pages)
                case Over(line):
                    self.fail(line)
                case Ready():
                    pass

    async def _watch(self, process: EngineProcess) -> None:
        while process.exit_code is None:
            await asyncio.sleep(0.25)
        self.fail(f"its process {process.how_it_ended()}")

    def _put(self, request: int, event: Event | Exception, at: float, *, ends: bool) -> None:
        generation = self._generations.pop(request, None) if ends else self._generations.get(request)
        if generation is not None:
            generation.put(event, at)

    def break_off(self) -> None:
        """End what is open, and tell who waits for it."""
        for request in list(self._generations):
            self.send(Abort(request))
            error = MachineError("server", "it is shutting down", "send the request again when it is back")
            self._put(request, error, time.monotonic(), ends=True)

    def give_up(self, line: str) -> None:
        """End an engine that does not answer, and tell what is open why."""
        self.fail(line)
        if self.process is not None:
            self.process.kill()

    def fail(self, line: str) -> None:
        """The engine has gone, which whoever waits for something is told."""
        self.failure = self.failure or line
        for feed in self._feeds.values():
            feed.put(MachineError("engine", self.failure, "start the server again"))
        for request in list(self._generations):
            self._put(request, MachineError("engine", self.failure, "start the server again"), time.monotonic(), ends=True)
