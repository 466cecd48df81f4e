"""What `tsrun generate` does: opens an artifact, runs prompts as one batch, prints text as it comes or JSON at the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from tsrun.artifact import is_artifact, read_manifest
from tsrun.compile_cache import CompileCache
from tsrun.engine import Engine
from tsrun.errors import ArtifactError, CacheError, RequestError, UsageError
from tsrun.generation import NO_TOKENS, FinishReason, GenerationRequest
from tsrun.launch import launched
from tsrun.limits import LimitOptions
from tsrun.sampler import Sampling
from tsrun.timing import Rates, RequestTiming
from tsrun.tokenizer import Tokenizer
from tsrun.worker import serve_launched


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """The command line of `tsrun generate`, typed."""

    path: Path
    prompts: tuple[str, ...]
    chat: bool = False
    system: str | None = None
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    as_json: bool = False
    mesh: str | None = None
    dtype: str | None = None
    limits: LimitOptions = field(default_factory=LimitOptions)
    threads: int | None = None


@dataclass(slots=True)
class Result:
    """What became of one prompt."""

    prompt: str
    timing: RequestTiming
    seed: int | None
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def record(self, load_seconds: float) -> dict[str, object]:
        rates = Rates.of([self.timing])
        return {
            "prompt": self.prompt,
            "prompt_tokens": self.timing.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "token_ids": self.token_ids,
            "text": "".join(self.pieces),
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "timings": {
                "load_seconds": load_seconds,
                "first_token_seconds": self.timing.first_token_seconds,
                "total_seconds": self.timing.total_seconds,
                "prefill_tokens_per_second": rates.prefill,
                "decode_tokens_per_second": rates.decode,
            },
        }


class OrderedPrinter:
    """Prints several texts that grow at once one after the other: the first unfinished one streams, later ones wait."""

    def __init__(self, count: int, stream: TextIO) -> None:
        self._waiting: list[list[str]] = [[] for _ in range(count)]
        self._finished = [False] * count
        self._current = 0
        self._stream = stream

    def feed(self, index: int, text: str, *, finished: bool) -> None:
        self._waiting[index].append(text)
        self._finished[index] = finished
        while self._current < len(self._waiting):
            self._stream.write("".join(self._waiting[self._current]))
            self._waiting[self._current].clear()
            if not self._finished[self._current]:
                break
            self._stream.write("\n")
            self._current += 1
        self._stream.flush()


def generate(options: GenerateOptions) -> None:
    started = time.perf_counter()
    path = resolve(options.path, options.mesh, options.dtype, context=options.limits.max_context)
    limits = with_resolved_draft(options.limits)
    if read_manifest(path).gives == "embeddings":
        raise ArtifactError(str(path), *NO_TOKENS)
    launch = launched()
    if launch is not None and launch[0] != 0:
        serve_launched(path, options.threads)
        return
    with open_engine(path, limits, options.threads) as engine:
        load_seconds = time.perf_counter() - started
        results = run_batch(engine, options, None if options.as_json else sys.stdout)
    if options.as_json:
        for result in results:
            print(json.dumps(result.record(load_seconds), ensure_ascii=False))
    elif sys.stderr.isatty():
        print(f"{Rates.of([result.timing for result in results])}{accepted_part(results)}", file=sys.stderr)


def resolve(
    path: Path,
    mesh: str | None,
    dtype: str | None,
    entry: str | None = None,
    tell: Callable[[str], None] | None = None,
    context: int | None = None,
) -> Path:
    """The artifact that a path means: itself, or what a checkpoint compiles to, for sequences of up to `context` tokens; `tell` hears why,
    else the standard error."""
    if not is_artifact(path):
        return CompileCache().obtain(path, mesh=mesh, dtype=dtype, say=tell or say, entry=entry, context=context)
    if mesh is not None or dtype is not None:
        raise UsageError("--mesh and --dtype", "an artifact has its mesh and dtype already", "leave them out, or give the checkpoint")
    if entry is not None:
        raise UsageError("--entry", "an artifact has its entry already", "leave it out, or give the checkpoint")
    return path


def with_resolved_draft(limits: LimitOptions, tell: Callable[[str], None] | None = None) -> LimitOptions:
    """With the artifact that its draft means, of one rank and as `resolve` finds it."""
    if limits.draft is None:
        return limits
    return replace(limits, draft=str(resolve(Path(limits.draft), None, None, tell=tell, context=limits.max_context)))


def open_engine(
    path: Path,
    limits: LimitOptions | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    follows_pages: bool = False,
) -> Engine:
    """Open an engine with progress shown, by default on a terminal; damage to an entry of the compile cache is mended by the cache."""
    try:
        return Engine(path, limits, threads=threads, progress=progress or loading_progress(), follows_pages=follows_pages)
    except ArtifactError as error:
        if not path.is_relative_to(CompileCache().root):
            raise
        raise CacheError(error.where, error.what, "`tsrun cache prune` removes damaged entries, then run this again") from None


def run_batch(engine: Engine, options: GenerateOptions, stream: TextIO | None) -> list[Result]:
    """Run all prompts as one batch; texts go to `stream` as they come, in the order of the prompts."""
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise ArtifactError(
            str(options.path), "has no tokenizer, since its checkpoint had none", "compile a checkpoint with tokenizer.json"
        )
    prompts = [encode(tokenizer, prompt, options) for prompt in options.prompts]
    results: dict[int, Result] = {}
    for text, ids in zip(options.prompts, prompts, strict=True):
        request = GenerationRequest(ids, options.max_tokens, options.sampling, options.stop, options.ignore_eos)
        number = engine.submit(request)
        seed = None if options.sampling.greedy else engine.seed_of(number)
        results[number] = Result(text, RequestTiming(len(ids)), seed)
    printer = None if stream is None else OrderedPrinter(len(results), stream)
    index = {number: place for place, number in enumerate(results)}
    for event in engine.events():
        if event.error is not None:
            raise RequestError("", event.error)
        result = results[event.request]
        result.token_ids.extend(event.token_ids)
        result.pieces.append(event.text)
        result.finish_reason = event.finish_reason
        result.cached_tokens = max(result.cached_tokens, event.cached_tokens)
        result.drafted_tokens += event.drafted
        result.accepted_tokens += event.accepted
        result.timing.note(len(event.token_ids))
        if printer is not None:
            printer.feed(index[event.request], event.text, finished=event.finish_reason is not None)
    return list(results.values())


def accepted_part(results: Sequence[Result]) -> str:
    drafted, accepted = sum(one.drafted_tokens for one in results), sum(one.accepted_tokens for one in results)
    return f", {accepted:,} of {drafted:,} drafted tokens came" if drafted else ""


def encode(tokenizer: Tokenizer, prompt: str, options: GenerateOptions) -> Sequence[int]:
    if not options.chat:
        return tokenizer.encode(prompt)
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return tokenizer.encode_chat([*system, {"role": "user", "content": prompt}])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def loading_progress() -> Callable[[int, int], None] | None:
    """Percent of the artifact verified, on a terminal; nothing elsewhere, since it is over in seconds."""
    if not sys.stderr.isatty():
        return None
    shown = -1

    def progress(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown:
            shown = percent
            sys.stderr.write(f"\rloading {percent:3} %" if done < total else "\r             \r")
            sys.stderr.flush()

    return progress
