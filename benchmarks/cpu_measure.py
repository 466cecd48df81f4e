"""One turn of a contender: which batches it runs, and what its tokens' times say."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cpu_cases import MEBIBYTE, Case
from cpu_driver import Setup
from cpu_weights import Weights
from scheduler import Contender, Unable

HELLO_SECONDS = 180  # imports, where the disk is cold
READY_SECONDS = 900  # vLLM compiles C++ when it sees a model for the first time
TURN_SECONDS = 300
_STRIDE = 2311  # between the beginnings of two prompts in the stream; prime, so that many turns find fresh ones
_FRESH = 16  # tokens after a cached prompt
_TEXT = "Why is the sky blue?"


@dataclass(frozen=True)
class Turn:
    """figures by key; tokens of each sequence."""

    figures: dict[str, float]
    tokens: list[list[int]]


class Worker(Contender):
    """A process of `cpu_worker.py`, whose environment may be its own."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.buffer = b""
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0, env={**os.environ, **environment}
        )

    def open(self, setup: Setup) -> float:
        """Seconds from the process' start until it took prompts."""
        self.answer(HELLO_SECONDS, "its import")
        self.ask(json.dumps(asdict(setup)), READY_SECONDS, "opening the model")
        return time.monotonic() - self.started

    def first_answer(self) -> float:
        """Seconds from the process' start until a text had its first token."""
        self.ask(json.dumps({"text": _TEXT, "new_tokens": 1}), TURN_SECONDS, "a text")
        return time.monotonic() - self.started

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Mapping[str, Any]:
        return self.ask(json.dumps({"prompts": prompts, "new_tokens": new_tokens}), TURN_SECONDS, "a batch")


def take_turn(worker: Worker, case: Case, weights: Weights, fresh: int, start_seconds: float) -> Turn:
    """`fresh`: another number for each turn whose prompt nobody may have seen before."""
    answered = worker.first_answer() if case.kind == "start" else 0.0
    place = 0 if case.kind in ("decode", "start") else _STRIDE * (fresh + 1)
    prompts = [weights.prompt(case.prompt, place + _STRIDE * n) for n in range(case.sequences)]
    said = worker.run(prompts, case.new_tokens)
    tokens = [[token for _, sequence, token in said["tokens"] if sequence == n] for n in range(case.sequences)]
    first = min(seconds for seconds, _, _ in said["tokens"])
    name = case.figures[0].key
    if case.kind == "decode":
        return Turn({name: decode_rate(said["tokens"], case.sequences)}, tokens)
    if case.kind == "prefill":
        return Turn({name: case.prompt / first}, tokens)
    if case.kind == "start":
        memory = {"resident": "all", "resident-own": "own", "resident-file": "file"}
        return Turn(
            {"start": start_seconds, "start-text": answered} | {key: said["resident"][part] / MEBIBYTE for key, part in memory.items()},
            tokens,
        )
    again = [[*prompts[0], *weights.stream[fresh * _FRESH : (fresh + 1) * _FRESH]]]
    cached = min(seconds for seconds, _, _ in worker.run(again, case.new_tokens)["tokens"])
    return Turn({"first-token": first * 1e3, "first-token-cached": cached * 1e3}, tokens)


def decode_rate(tokens: Sequence[tuple[float, int, int]], sequences: int) -> float:
    """Tokens a second while all sequences decode: from when the last of them has its first token until the first of them ends."""
    times = [[seconds for seconds, sequence, _ in tokens if sequence == n] for n in range(sequences)]
    begin, end = max(found[0] for found in times), min(found[-1] for found in times)
    inside = sum(begin < seconds <= end for found in times for seconds in found)
    if inside < sequences:
        raise Unable("no two of its sequences decoded at the same time")
    return inside / (end - begin)
