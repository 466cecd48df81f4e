"""`tsrun bench agentic`: sessions of coding agents against any server with OpenAI's API."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tsrun.bench.client import Client
from tsrun.bench.load import Crowd, Load
from tsrun.bench.records import FORMAT, Result, Run, TurnRecord, machine, write
from tsrun.bench.report import aligned, load_name, rows
from tsrun.bench.requests import Requests
from tsrun.bench.sessions import Plan, Scale, Sessions
from tsrun.bench.summary import figures, number
from tsrun.bench.traces import Trace, read_trace
from tsrun.bench.users import Asking
from tsrun.bench.words import text
from tsrun.bench.workload import read_workload
from tsrun.errors import MachineError

_PROBE_WORDS = 400


@dataclass(frozen=True, slots=True)
class AgenticOptions:
    """concurrency: numbers of users, one run each; rates: sessions a minute, one run each; sessions: of a run, or as many as users where
    those are more; tokens_per_word: of the model's tokenizer, asked of the server where None."""

    url: str
    label: str
    model: str | None = None
    api_key: str | None = None
    workload: Path | None = None
    trace: Path | None = None
    concurrency: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    sessions: int = 8
    repeats: int = 3
    seed: int = 0
    scale: Scale = field(default_factory=Scale)
    floor: float = 70.0
    devices: int = 1
    forces_length: bool = True
    native_tools: bool = False
    tokens_per_word: float | None = None
    most_seconds: float = float("inf")
    json: Path | None = None
    requests: tuple[int, int, int] | None = None
    """Instead of sessions, requests of so many tokens, with so many in answer, of which so many are shared."""


class Agentic:
    """Of one server: asks it what it has, and runs loads against it. Raises UsageError and MachineError."""

    def __init__(self, options: AgenticOptions) -> None:
        self.options = options
        self._client = Client(options.url, options.api_key)
        self._workload, digest = read_workload(options.workload)
        self._trace = None if options.trace is None else read_trace(options.trace)
        self._asking, self.tokens_per_word = asyncio.run(self._ask())
        self._how: dict[str, Any] = {
            "workload_sha256": digest,
            "trace": None if options.trace is None else options.trace.name,
            "seed": options.seed,
            "sessions": options.sessions,
            "tokens_per_word": self.tokens_per_word,
            **asdict(options.scale),
            "forces_length": options.forces_length,
            "native_tools": options.native_tools,
            "requests": options.requests,
        }
        self._runs: list[Run] = []

    @property
    def loads(self) -> list[Load]:
        options = self.options
        users = [Load(n, None, max(options.sessions, n), options.most_seconds) for n in options.concurrency]
        return [*users, *(Load(None, rate, options.sessions, options.most_seconds) for rate in options.rates)]

    def run(self, load: Load, repeat: int, progress: Progress) -> Run:
        """One run. Its words are those of no other, but for what all sessions share."""
        salt = f"{load.concurrency or load.rate}/{repeat}"
        plan = Plan(self._workload, self.options.seed, self.options.scale, self.tokens_per_word, salt)
        made = self._sessions(plan)
        name = load_name((load.concurrency, load.rate))
        task = progress.add_task(f"{self.options.label}, {name}, {repeat + 1} of {self.options.repeats}", total=load.sessions, turns="")
        turns = 0

        def on_turn(turn: TurnRecord) -> None:
            nonlocal turns
            turns += 1
            progress.update(task, turns=f"{turns} turns" + (f", last failed: {turn.error[:60]}" if turn.failed else ""))

        crowd = Crowd(made, self._client, self._asking, load, lambda done: progress.update(task, completed=done), on_turn)
        try:
            run = asyncio.run(crowd.run(repeat))
        finally:
            progress.remove_task(task)
        if run.turns and all(turn.status == 0 for turn in run.turns):
            raise MachineError(self.options.url, f"does not answer ({run.turns[0].error})", "start the server, or give its address")
        self._runs.append(run)
        found = figures(run, self.options.devices, self.options.floor)
        speed = "" if found.user_tps is None else f"{number(found.user_tps)} tokens/s a user, "
        rate = f"{number(found.output_per_minute)} tokens/min"
        line = f"{self.options.label}, {name}: {speed}{rate}, {found.turns} turns, {found.failed} failed"
        progress.console.print(line, soft_wrap=True, markup=False)
        return run

    def _sessions(self, plan: Plan) -> Sessions:
        if self.options.requests is not None:
            return Requests(plan, *self.options.requests)
        return plan if self._trace is None else Trace(plan, self._trace)

    def result(self) -> Result:
        options = self.options
        kind = "agentic" if options.requests is None else "serve"
        return Result(FORMAT, kind, options.label, self._asking.model, options.devices, self._how, machine(), list(self._runs))

    async def _ask(self) -> tuple[Asking, float]:
        options = self.options
        try:
            model = options.model or (await self._client.models())[0]
        except (OSError, EOFError, ValueError, LookupError) as error:
            raise MachineError(options.url, f"does not answer ({error})", "start the server, or give its address and --model") from None
        asking = Asking(model, options.forces_length, options.native_tools)
        if options.tokens_per_word is not None:
            return asking, options.tokens_per_word
        counted = [await self._prompt_tokens(asking, words) for words in (1, _PROBE_WORDS + 1)]
        return asking, round((counted[1] - counted[0]) / _PROBE_WORDS, 4)

    async def _prompt_tokens(self, asking: Asking, words: int) -> int:
        body = {"model": asking.model, "messages": [{"role": "user", "content": text(words, "probe")}], "max_tokens": 1, "temperature": 0}
        answer = await self._client.chat(body)
        if answer.failed or not answer.prompt_tokens:
            why = answer.error or "no usage in its answer"
            raise MachineError(self.options.url, f"answers {answer.status} ({why})", "give --tokens-per-word, or look at the server")
        return answer.prompt_tokens


def progress_bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total} sessions"),
        TextColumn("{task.fields[turns]}"),
    )
    return Progress(*columns, TimeElapsedColumn(), console=Console(file=sys.stderr), transient=True)


def agentic(options: AgenticOptions) -> None:
    """The command: all loads, in turns, `repeats` times; a table; the result's file."""
    if not options.concurrency and not options.rates:
        options = replace(options, concurrency=(1, 2, 4, 8, 16))
    bench = Agentic(options)
    with progress_bar() as progress:
        for repeat in range(options.repeats):
            for load in bench.loads:
                bench.run(load, repeat, progress)
    result = bench.result()
    if options.json is not None:
        write(result, options.json)
    Console(width=240 if not sys.stdout.isatty() else None).print(aligned(f"{options.label} ({result.model})", rows(result, options.floor)))
