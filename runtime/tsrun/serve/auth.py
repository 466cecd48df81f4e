"""Who may ask. The outermost layer of the application, so that no path gets around it."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from tsrun.serve.answers import Origin
from tsrun.serve.http_errors import HttpError
from tsrun.serve.sse import send_error

OPEN_PATHS = frozenset({"/health", "/ready", "/"})
"""Of probes, which have no key and learn nothing but that, and the page, which is the same everywhere and asks for the key."""
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One that is let in. Keys are compared by digest, which takes the same time for all, of the bytes that a client sends: UTF-8."""

    name: str
    digest: bytes

    @classmethod
    def of(cls, name: str, key: str) -> ApiKey:
        return cls(name, hashlib.sha256(os.fsencode(key)).digest())  # a command line's bytes, whether they are text or not


class Gate:
    """Lets requests with a key through, or all where there are no keys; gives each its id and its origin.

    Requests of different keys never find each other's prompts in the prefix cache: how soon a first token comes would tell one what the
    other has asked.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey], secret: bytes) -> None:
        """secret: what nobody else knows, by which keys become what tells their prompts apart."""
        self._app = app
        self._keys = keys
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket: there are none here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        state = scope.setdefault("state", {})
        state["request_id"] = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        state["headers"] = headers
        if scope["path"] in OPEN_PATHS or not self._keys:
            state["origin"] = Origin()
            await self._app(scope, receive, send)
            return
        index = self._index_of(headers)
        if index is None:
            error = HttpError(401, "the API key is missing or wrong; send `Authorization: Bearer KEY`", code="invalid_api_key")
            body = error.anthropic(state["request_id"]) if b"x-api-key" in headers or b"anthropic-version" in headers else error.openai()
            await send_error(send, error, lambda _: body, {"www-authenticate": "Bearer", "x-request-id": state["request_id"]})
            return
        state["origin"] = Origin(index + 1, self._salt(self._keys[index].name) if len(self._keys) > 1 else None)
        await self._app(scope, receive, send)

    def _index_of(self, headers: dict[bytes, str]) -> int | None:
        kind, _, bearer = headers.get(b"authorization", "").partition(" ")
        given = bearer.strip(" \t") if kind.lower() == "bearer" else headers.get(b"x-api-key", "")
        digest = hashlib.sha256(given.encode("latin-1")).digest()
        found = [hmac.compare_digest(digest, key.digest) for key in self._keys]
        return found.index(True) if any(found) else None

    def _salt(self, name: str) -> str:
        return hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()
