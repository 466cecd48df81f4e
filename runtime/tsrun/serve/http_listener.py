"""A port on which an application answers HTTP."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from tsrun.errors import MachineError

_HEADER_BYTES = 16 * 1024


class HttpListener:
    """`app` answers at a socket of `listen_at`."""

    def __init__(self, app: ASGIApp, listening: socket.socket, certfile: Path | None = None, keyfile: Path | None = None) -> None:
        """The socket is the listener's from now on."""
        listening = self._listening = _Shared(listening.family, listening.type, listening.proto, listening.detach())
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11",  # the other one has no bound for headers
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=None,
                h11_max_incomplete_event_size=_HEADER_BYTES,
                ssl_certfile=certfile,
                ssl_keyfile=keyfile,
                server_header=False,
            )
        )
        host, port = listening.getsockname()[:2]
        self.url = f"{'https' if certfile else 'http'}://{bracketed(host)}:{port}"

    async def serve(self) -> None:
        await self._server.serve([self._listening])

    def end(self, *, at_once: bool) -> None:
        self._server.should_exit = True
        self._server.force_exit = self._server.force_exit or at_once


class _Shared(socket.socket):
    """A socket from which other processes take connections too: one at a time, so that those that come at once are not all for one."""

    _has_taken = False

    def accept(self) -> tuple[socket.socket, Any]:
        self._has_taken = not self._has_taken
        if not self._has_taken:
            raise BlockingIOError
        try:
            return super().accept()
        except BlockingIOError:
            self._has_taken = False
            raise


class _Server(uvicorn.Server):
    """One that signals do not end: they are for whoever runs it."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


def listen_at(host: str, port: int) -> socket.socket:
    """MachineError where that can not be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Only of a socket that says its protocol does asyncio send at once what is written; others wait 40 ms for the client's word.
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        raise can_not_listen(host, port, error.strerror) from None
    return listening


def can_not_listen(host: str, port: int, why: str | None) -> MachineError:
    return MachineError(f"{host}:{port}", f"can not listen there ({why})", "give another --port or --host")


def bracketed(host: str) -> str:
    """As it stands in an URL."""
    return f"[{host}]" if ":" in host else host
