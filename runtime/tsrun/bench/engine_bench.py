"""`tsrun bench decode` and `prefill`: an artifact's engine in this process, without a server, in batches."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console

from tsrun.bench.records import FORMAT, ClientCost, Result, Run, TurnRecord, machine, write
from tsrun.bench.report import aligned, load_name, rows
from tsrun.bench.summary import figures, number
from tsrun.bench.watching import Energy
from tsrun.bench.words import generator
from tsrun.errors import UsageError

if TYPE_CHECKING:
    from tsrun.engine import Engine

_FREE = ClientCost(0.0, 0.0, 0.0, 0.0)
"""It is the engine's own process: nothing looks on."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """batches: numbers of sequences, a run each, of `context` tokens, which then make `tokens` more."""

    artifact: Path
    kind: Literal["decode", "prefill"]
    label: str
    batches: tuple[int, ...]
    context: int
    tokens: int
    repeats: int
    threads: int | None
    speculate: str
    floor: float
    json: Path | None


def engine_bench(options: EngineOptions) -> None:
    """The command. Before the runs that count comes one of each batch that does not."""
    from tsrun.engine import Engine
    from tsrun.generate import loading_progress
    from tsrun.limits import LimitOptions

    most = max(options.batches)
    room = options.context + options.tokens + 1
    limits = LimitOptions(max_sequences=most, max_context=room, speculate=options.speculate, prefix_cache=False)  # type: ignore[arg-type]
    runs = []
    with Engine(options.artifact, limits, threads=options.threads, progress=loading_progress()) as engine:
        if engine.artifact.manifest.gives == "embeddings":
            raise UsageError(str(options.artifact), "the model gives embeddings, and no tokens", "name an artifact that gives logits")
        for repeat in range(-1, options.repeats):
            for batch in options.batches:
                run = _run(engine, options, batch, repeat)
                if repeat < 0:
                    continue
                runs.append(run)
                found = figures(run, 1, options.floor)
                speed = found.output_per_minute if options.kind == "decode" else found.computed_per_minute
                print(f"{load_name((batch, None))}: {number(speed or 0.0)} tokens/min", file=sys.stderr)
        vocabulary = engine.artifact.manifest.vocabulary
    how: dict[str, Any] = {"context": options.context, "tokens": options.tokens, "speculate": options.speculate, "vocabulary": vocabulary}
    result = Result(FORMAT, options.kind, options.label, options.artifact.stem, 1, how, machine(), runs)
    if options.json is not None:
        write(result, options.json)
    Console(width=240 if not sys.stdout.isatty() else None).print(aligned(f"{options.label}, {options.kind}", rows(result, options.floor)))


def _run(engine: Engine, options: EngineOptions, batch: int, repeat: int) -> Run:
    """A batch to its end. Of `decode` it begins when all sequences have a token, since what comes before is prefill."""
    from tsrun.generation import GenerationRequest

    random = generator("engine", batch, repeat)
    prompts = random.integers(0, engine.artifact.manifest.vocabulary, (batch, options.context)).astype(np.int64)
    tokens = options.tokens if options.kind == "decode" else 1
    energy = Energy()
    began = time.perf_counter()
    numbers = {engine.submit(GenerationRequest(prompt.tolist(), tokens, ignore_eos=True)): n for n, prompt in enumerate(prompts)}
    came: list[list[tuple[float, int]]] = [[] for _ in numbers]
    for event in engine.events():
        if event.token_ids:
            came[numbers[event.request]].append((time.perf_counter(), len(event.token_ids)))
    joules = energy.since()
    if options.kind == "prefill":
        turns = [_turn(n, pieces, began, began, options.context, prefill=True) for n, pieces in enumerate(came)]
    else:
        all_have = max(pieces[0][0] for pieces in came)
        turns = [
            _turn(n, [(at, k) for at, k in pieces if at >= all_have], began, all_have, options.context) for n, pieces in enumerate(came)
        ]
        began = all_have
    seconds = max(turn.ended for turn in turns)
    return Run(batch, None, repeat, seconds, turns, _FREE, joules)


def _turn(
    number: int, pieces: Sequence[tuple[float, int]], sent: float, began: float, context: int, *, prefill: bool = False
) -> TurnRecord:
    """Of one sequence, from the moment that counts."""
    first, last = (pieces[0][0], pieces[-1][0]) if pieces else (began, began)
    return TurnRecord(
        user=number,
        session=number,
        turn=0,
        sent=0.0,
        ended=last - began,
        first=first - sent,
        last=last - first,
        gaps=[round(after - before, 5) for (before, _), (after, _) in pairwise(pieces)],
        prompt_tokens=context,
        completion_tokens=sum(count for _, count in pieces),
        cached_tokens=0 if prefill else None,
        eligible=0,
        status=200,
    )
