"""Other processes that speak HTTP, as the server's first one sees them."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time

from tsrun.errors import MachineError, TsrunError
from tsrun.serve.engine_client import EngineClient
from tsrun.serve.http_process import HttpSpec
from tsrun.serve.shared_state import LocalState
from tsrun.serve.state_channel import Answering, Asked, Channel, End, EngineFailed, EngineStuck, Failed, FromOther, Serving, framed
from tsrun.serve.watchdog import end_stuck

_MODULE = "tsrun.serve.http_process"
_END_SECONDS = 5.0
_LOOK_SECONDS = 0.05


class HttpProcess:
    """One of them. It ends when this process does."""

    def __init__(self, number: int, spec: HttpSpec, listening: socket.socket) -> None:
        self._name = f"HTTP process {number}"
        self._ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", _MODULE, str(theirs.fileno()), str(listening.fileno())]
            fds = (theirs.fileno(), listening.fileno())
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds)
        self._ours.sendall(framed(spec))
        self._channel: Channel[FromOther] | None = None
        self._serving = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._must_end_by: float | None = None
        self._is_killed = False
        self._failed: Failed | None = None
        self._stuck: float | None = None

    async def connect(self, state: LocalState) -> None:
        """Wait until it serves, and answer what it asks from now on. Raises its own error where it ends instead."""
        self._channel = await Channel.open(self._ours, FromOther)
        self._listening = asyncio.create_task(self._listen(self._channel, Answering(self._channel, state)))
        while not self._serving.is_set():
            if self._process.poll() is not None:
                raise self.error() or MachineError(self._name, "it ended", "start the server again")
            await asyncio.sleep(_LOOK_SECONDS)

    async def serve(self, engine: EngineClient) -> None:
        """Until it has ended, as it was told to or not. What becomes of the engine is passed on to it."""
        assert self._channel is not None
        knows = False
        while self._process.poll() is None:
            if self._stuck is not None and engine.failure is None:
                await end_stuck(engine, self._stuck)
            if engine.failure is not None and not knows:
                knows = True
                self._channel.send(EngineFailed(engine.failure))
            if self._must_end_by is not None and time.monotonic() > self._must_end_by:
                self._kill()
            await asyncio.sleep(_LOOK_SECONDS)

    @property
    def is_serving(self) -> bool:
        return self._process.poll() is None

    def end(self, *, at_once: bool) -> None:
        """When what it has under way has ended, or at once."""
        if at_once and self._must_end_by is None:
            self._must_end_by = time.monotonic() + _END_SECONDS
        if self._channel is not None and self.is_serving:
            self._channel.send(End(at_once))

    def error(self) -> TsrunError | None:
        """Why it has ended otherwise than as it was told to."""
        if self._failed is not None:
            return self._failed.error()
        code = self._process.poll()
        if not code or self._is_killed:
            return None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return MachineError(self._name, f"it {how}", "start the server again")

    def close(self) -> None:
        """It has ended, or is made to."""
        if self._listening is not None:
            self._listening.cancel()
        if self._channel is None:
            self._ours.close()
        else:
            self._channel.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()

    def _kill(self) -> None:
        self._is_killed = True
        self._process.kill()

    async def _listen(self, channel: Channel[FromOther], answering: Answering) -> None:
        async for message in channel:
            match message:
                case Asked():
                    await answering.take(message)
                case Serving():
                    self._serving.set()
                case EngineStuck(seconds):
                    self._stuck = seconds
                case Failed():
                    self._failed = message
