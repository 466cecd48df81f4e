"""What `benchmarks/cpu.py` asks of an engine; `cpu_ours.py`, `cpu_llama.py` and `cpu_vllm.py` answer it, each in its own environment.

So nothing is imported here that a peer's environment may lack.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast


@dataclass(frozen=True)
class Setup:
    """What an engine is opened for. `options` are the contender's own."""

    model: str  # a path
    threads: int
    sequences: int  # at once
    context: int  # tokens of the longest, with what it generates
    options: Mapping[str, str] = field(default_factory=dict)


class Token(NamedTuple):
    """A generated token, and when its engine gave it out."""

    seconds: float
    sequence: int
    token: int


class Engine(Protocol):
    """A model that is ready to take prompts.

    What `generate` takes and gives are token ids: no figures but that of a text at the start have a tokenizer in them. An engine keeps the
    keys and values of the prompts that it ran, so far as its room goes, and a prompt that begins with one of them does not compute them
    again.
    """

    def __init__(self, setup: Setup) -> None: ...
    def encode(self, text: str) -> list[int]:
        """Ids of a text that begins a sequence, by the engine's own tokenizer."""

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Token]:
        """Continue all prompts as one batch, greedily and past any end token; seconds count from the call."""


class Module(Protocol):
    """A file `cpu_NAME.py`. Nothing heavy is imported before `version`, whose time counts as part of the start."""

    Engine: type[Engine]

    def version(self) -> str: ...


MODULES = {"ours": "cpu_ours", "llama-cpp": "cpu_llama", "vllm": "cpu_vllm"}


def load(contender: str) -> Module:
    return cast(Module, importlib.import_module(MODULES[contender]))
