"""The engine's process: grammars are compiled beside it, and nobody waits for those that nobody wants."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.serve.test_http import eventually

from tsrun.constraint import Constraint
from tsrun.engine import Engine
from tsrun.generation import GenerationRequest
from tsrun.limits import LimitOptions
from tsrun.serve.engine_process import EngineServer, Spec
from tsrun.serve.logs import LogOptions
from tsrun.serve.messages import Abort, Ready, Submit, from_engine, packed


class Socket:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send_multipart(self, parts: list[bytes]) -> None:
        self.sent.append(from_engine(parts[1]))


def test_an_aborted_request_has_no_grammar_compiled(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    goes_on = threading.Event()
    prepare = Engine.prepare

    def slow(self: Engine, constraint: Constraint) -> None:
        begun.append(constraint.text)
        assert goes_on.wait(20)
        prepare(self, constraint)

    monkeypatch.setattr(Engine, "prepare", slow)
    with Engine(model) as engine:
        socket = Socket()
        spec = Spec(str(model), "", LimitOptions(), 1, os.getpid(), False, "", 60.0, LogOptions())
        server = EngineServer(engine, socket, Ready(str(model), 1, 1, 1, 1, 0.0), spec)  # type: ignore[arg-type]
        texts = [f"x{{{i}}}" for i in range(1, 7)]
        for number, text in enumerate(texts):
            request = GenerationRequest([9], 5, constraint=Constraint("regex", text))
            server._take(b"front", packed(Submit(number, request)))
        eventually(lambda: len(begun) == 2)
        for number in (0, 2, 3, 4):  # the first is compiled already
            server._take(b"front", packed(Abort(number)))
        assert [message.events[0].finish_reason for message in socket.sent] == ["abort"] * 4
        goes_on.set()
        server._compiler.shutdown()
        assert begun == [texts[0], texts[1], texts[5]]
        server._submit_compiled()
        assert [type(message).__name__ for message in socket.sent[4:]] == ["Accepted"] * 2
        assert [message.request for message in socket.sent[4:]] == [1, 5]
        assert not server._compiling
