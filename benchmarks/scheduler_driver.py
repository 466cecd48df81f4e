"""What `benchmarks/scheduler.py` asks of a scheduler; `scheduler_ours.py`, `scheduler_tokenspeed.py` and `scheduler_vllm.py` answer it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

WINDOW = 1024  # tokens of the window group, and between two snapshots of the state group
TOKEN = 7  # what every sequence samples: no scheduler looks at it but to hash it


@dataclass(frozen=True)
class Setup:
    """Sizes of a scheduler under test."""

    running: int  # sequences at once
    context: int  # tokens of the longest
    pages: int  # of the full group
    page: int = 64
    step_tokens: int = 8192
    hybrid: bool = False  # besides the full group a window group and a state group
    drafts: int = 0  # tokens drafted for each sequence and step
    depth: int = 1  # steps under way at once
    prefix_cache: bool = True
    endless: bool = False  # no request reaches its last token: a driver need not count


class Driver(Protocol):
    """A scheduler with its engine's part of a step: what an engine must read and build, and no more.

    A plan, an outcome and a prompt are of the driver's own types."""

    def __init__(self, setup: Setup) -> None: ...
    def prompt(self, tokens: NDArray[np.int32]) -> Any:
        """The prompt as the engine holds it when it calls `submit`; not timed."""

    def submit(self, request: int, prompt: Any, new_tokens: int) -> None: ...
    def plan(self) -> Any | None: ...
    def outcome(self, plan: Any, accepted: NDArray[np.int32] | None = None) -> Any:
        """Read every array of the plan, and build what `commit` takes: `accepted` tokens for each sequence, one by default."""

    def commit(self, plan: Any, outcome: Any) -> Sequence[int]:
        """The requests that ended with this step."""

    def abort(self, requests: Sequence[int]) -> None: ...
    def sampled(self, outcome: Any) -> int:
        """Sequences that got a token; asked before the commit; not timed."""

    def cached(self, plan: Any, request: int) -> int:
        """Tokens that the request found in the prefix cache; asked after the plan that admitted it; not timed."""


class Module(Protocol):
    """A file `scheduler_NAME.py`."""

    Scheduler: type[Driver]

    def version(self) -> str: ...


def load(name: str) -> Module:
    return cast(Module, importlib.import_module(f"scheduler_{name}"))
