"""What a front end and the engine say to one another: msgpack over a Unix socket that only this user may open.

A request has the number that its front end gave it; the engine knows front ends by the identity of their socket.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from tsrun.generation import EmbeddingRequest, Event, GenerationRequest, Load, PageEvent, Running, Speculated

Message = TypeVar("Message")


class Hello(msgspec.Struct, tag=True):
    """A front end's first word; the engine answers with `Ready`."""


class Submit(msgspec.Struct, tag=True):
    """identity: what logs call the request."""

    request: int
    what: GenerationRequest
    identity: str = ""


class Embed(msgspec.Struct, tag=True):
    """Submit a sequence to a model that gives embeddings."""

    request: int
    what: EmbeddingRequest
    identity: str = ""


class Abort(msgspec.Struct, tag=True):
    """Its last event, with the reason `abort`, comes as for any other end. Of a request that has ended: nothing."""

    request: int


class Stop(msgspec.Struct, tag=True):
    """End the process when nothing is open any more, or at once."""

    at_once: bool = False


class Follow(msgspec.Struct, tag=True):
    """Tell under this number, which the front end gives, what the prefix cache has and how that changes. One message at a time: the next
    comes after `Passed`."""

    follower: int


class Passed(msgspec.Struct, tag=True):
    """The pages that came last were passed on."""

    follower: int


class Unfollow(msgspec.Struct, tag=True):
    follower: int


FromFront = Hello | Submit | Embed | Abort | Stop | Follow | Passed | Unfollow


class Ready(msgspec.Struct, tag=True):
    """What a front end has to know of the engine. load_seconds: from the start of its process."""

    artifact: str
    max_context: int
    max_sequences: int
    num_pages: int
    page_size: int
    load_seconds: float


class Accepted(msgspec.Struct, tag=True):
    """A request that runs now, or when there is room."""

    request: int


class Refused(msgspec.Struct, tag=True):
    """A request that can never run: the three parts of its error."""

    request: int
    where: str
    what: str
    mend: str


class Statistics(msgspec.Struct):
    """The engine as it is, and what it has done since it started. stuck: requests that it ended, since no step brought them forward."""

    load: Load
    running: list[Running] = msgspec.field(default_factory=list)
    stuck: int = 0
    steps: int = 0
    busy_seconds: float = 0.0
    generated_tokens: int = 0
    speculated: Speculated = msgspec.field(default_factory=Speculated)


class Events(msgspec.Struct, tag=True):
    """What steps brought this front end's requests; statistics now and then. at: when, by the machine's monotonic clock, in seconds."""

    events: list[Event]
    at: float
    statistics: Statistics | None = None


class Pages(msgspec.Struct, tag=True):
    """What a follower has not heard of yet. anew: what it knew before does not count."""

    follower: int
    events: list[PageEvent]
    anew: bool = False


class Over(msgspec.Struct, tag=True):
    """The engine has failed, and its process ends."""

    line: str


FromEngine = Ready | Accepted | Refused | Events | Pages | Over

_encoder = msgspec.msgpack.Encoder()
_from_front: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromFront)
_from_engine: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromEngine)


def packed(message: FromFront | FromEngine) -> bytes:
    return _encoder.encode(message)


def from_front(data: bytes) -> FromFront:
    message: FromFront = _from_front.decode(data)
    return message


def from_engine(data: bytes) -> FromEngine:
    message: FromEngine = _from_engine.decode(data)
    return message
