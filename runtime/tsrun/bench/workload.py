"""What sessions are drawn from: a TOML file (`agentic.toml` says what is in it)."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from math import log, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tsrun.errors import InputError

if TYPE_CHECKING:
    import numpy as np


class Length(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lognormal distribution, cut; `tail_share` of it evenly from `tail`."""

    median: float
    sigma: float | None = None
    mean: float | None = None
    least: float = 0.0
    most: float = float("inf")
    tail_share: float = 0.0
    tail: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if (self.sigma is None) == (self.mean is None):
            raise ValueError("a distribution has either `sigma` or `mean`")
        if self.median <= 0 or (self.mean is not None and self.mean < self.median) or not 0 <= self.tail_share <= 1:
            raise ValueError("a median is positive, a mean no less than it, a share between 0 and 1")

    def draw(self, random: np.random.Generator) -> float:
        # Each draw takes the same numbers of the generator, so that a change of one does not change all that follow.
        tails, place, normal = random.random(), random.random(), random.standard_normal()
        if tails < self.tail_share:
            low, high = self.tail
            return low + place * (high - low)
        sigma = self.sigma if self.sigma is not None else sqrt(2 * log((self.mean or self.median) / self.median))
        return float(min(max(self.median * 2.718281828459045 ** (sigma * normal), self.least), self.most))


class Harness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: list[int]
    tools_share: float


class Repository(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    groups: int
    tokens: Length


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: Length


class Turns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: Length


class Answers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: Length
    tool_share: float


class Spoken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What comes between answers, of a tool or a human, and how long it takes."""

    tokens: Length
    seconds: Length


class Forks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    share: float
    count: Length
    turns: Length


class Ends(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cancelled_share: float
    abandoned_share: float


class Hostile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nonce_share: float
    schema_share: float


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    context: int
    compaction: float
    summary: Length
    harness: Harness
    repository: Repository
    task: Task
    turns: Turns
    answers: Answers
    tools: Spoken
    human: Spoken
    forks: Forks
    ends: Ends
    hostile: Hostile


def read_workload(file: Path | None) -> tuple[Workload, str]:
    """The file's, or the one that comes with the program; and its digest. Raises InputError."""
    source = files("tsrun.bench") / "agentic.toml" if file is None else file
    try:
        text = source.read_bytes()
        return msgspec.toml.decode(text, type=Workload), hashlib.sha256(text).hexdigest()
    except OSError as error:
        raise InputError("--workload", f"{file} can not be read ({error.strerror})", "name a file like tsrun/bench/agentic.toml") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("--workload", f"{file}: {error}", "compare it with tsrun/bench/agentic.toml") from None
