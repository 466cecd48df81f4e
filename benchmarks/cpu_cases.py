"""What `benchmarks/cpu.py` measures: the cases, the figures that each gives, and what ours has to reach (issue 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Roof = Literal["bandwidth", "matmul"]
MODELS = {"gemma": "Gemma 3 270M, bf16", "gguf": "Gemma 3 270M, GGUF Q4_K_M", "smollm2": "SmolLM2-135M-Instruct, bf16"}
LONGEST = 8192
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Goal:
    """At least `ratio` times as good as the peer, or the best of the peers; or at most `limit`."""

    ratio: float | None = None
    peer: str | None = None
    limit: float | None = None

    def __str__(self) -> str:
        if self.ratio is None:
            return f"<= {self.limit:g}"
        return f"{self.ratio:g}x " + (self.peer or "the best")


@dataclass(frozen=True)
class Figure:
    """One number of a turn. roof: what it cannot be above, if we know one."""

    key: str
    label: str
    unit: str
    rises: bool = False  # more is better
    roof: Roof | None = None
    tokens: bool = False  # the tokens of the turn are compared with the peers'


@dataclass(frozen=True)
class Case:
    """sequences at once, each a prompt of so many tokens and then new ones; room: what the engine is opened for, (sequences, context)."""

    name: str
    kind: Literal["decode", "prefill", "first-token", "start"]
    figures: tuple[Figure, ...]
    sequences: int = 1
    prompt: int = 129  # engines keep pages of 16 or 128 tokens, and run at least the last again: 128 are found after the first turn
    new_tokens: int = 64
    room: tuple[int, int] = (1, LONGEST)
    scaling: Literal["batch", "context"] | None = None

    def small(self) -> Case:
        """As --quick measures it."""
        return replace(self, prompt=min(self.prompt, 160), new_tokens=min(self.new_tokens, 8))


def _decode(name: str, label: str, *, tokens: bool = True) -> tuple[Figure, ...]:
    return (Figure(name, label, "tokens/s", rises=True, roof="bandwidth", tokens=tokens),)


def _batch(sequences: int) -> Case:
    figures = _decode(f"batch-{sequences}", f"decode, batch of {sequences}", tokens=False)
    return Case(f"batch-{sequences}", "decode", figures, sequences=sequences, room=(32, 256), scaling="batch")


def _context(context: int) -> Case:
    figures = _decode(f"context-{context}", f"decode, up to {context:,} tokens", tokens=False)
    return Case(f"context-{context}", "decode", figures, prompt=context - 32, new_tokens=32, scaling="context")


CASES = (
    Case("decode-1", "decode", _decode("decode-1", "decode, 1 user")),
    Case("decode-8", "decode", _decode("decode-8", "decode, 8 users"), sequences=8, room=(32, 256)),
    Case(
        "prefill-1024",
        "prefill",
        (Figure("prefill-1024", "prefill, 1,024 tokens", "tokens/s", rises=True, roof="matmul"),),
        prompt=1024,
        new_tokens=1,
    ),
    Case(
        "first-token-2048",
        "first-token",
        (
            Figure("first-token-cached", "first token, 2,048 cached tokens and 16 more", "ms"),
            Figure("first-token", "first token, 2,048 tokens", "ms"),
        ),
        prompt=2048,
        new_tokens=1,
    ),
    Case(
        "start",
        "start",
        (
            Figure("start", "start to ready", "s"),
            Figure("start-text", "start to the first token after a text", "s"),
            Figure("resident", "resident memory after decoding", "MiB"),
            Figure("resident-own", "  of it its own", "MiB"),
            Figure("resident-file", "  of it pages of files", "MiB"),
        ),
        room=(1, 4096),
    ),
    *(_batch(sequences) for sequences in (1, 2, 4, 8, 16, 32)),
    *(_context(context) for context in (128, 256, 512, 1024, 2048, 4096, LONGEST)),
)

GOALS = {
    ("gemma", "decode-1"): Goal(1.05, "llama.cpp"),  # 1.3 with the screened head
    ("gguf", "decode-1"): Goal(1.5),
    ("gemma", "decode-8"): Goal(1.3),
    ("gemma", "prefill-1024"): Goal(1.25),
    ("gemma", "first-token-cached"): Goal(limit=25),
    ("gemma", "first-token"): Goal(1.25),
    ("gemma", "resident"): Goal(limit=650),
    ("gemma", "start"): Goal(limit=1),
    ("gemma", "start-text"): Goal(limit=1),
}


def chosen(names: list[str], scaling: bool) -> list[Case]:
    """Those of these names, or whose names start so; without names the table's, and those of the plots where `scaling`."""
    wanted: set[str] = set()
    for name in names:
        found = {case.name for case in CASES if case.name == name} or {case.name for case in CASES if case.name.startswith(name)}
        if not found:
            raise SystemExit(f"no case `{name}`; there are {', '.join(case.name for case in CASES)}")
        wanted |= found
    return [case for case in CASES if (case.name in wanted if names else scaling or case.scaling is None)]
