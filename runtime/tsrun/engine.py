"""The engine: requests in, events out; plan, run, sample and commit, step after step.

With a depth of 2 the next step is planned while one runs, before the tokens of that one are known; as soon as they are, they go into the
next, which starts, and what they mean for their requests is found out while it runs. Dimensions: T tokens and S sequences in the step,
V vocabulary. A request for an embedding is one for a token, but for what becomes of its row. For one thread at a time.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from tsrun._core import Sampler, Scheduler, StepPlan
from tsrun.allowed import Allowed
from tsrun.artifact import Artifact
from tsrun.constraint import Constraint
from tsrun.constraints import Constraints
from tsrun.embedding import Embeds
from tsrun.errors import MachineError, RequestError, TsrunError
from tsrun.generation import (
    NO_EMBEDDINGS,
    NO_TOKENS,
    Blame,
    EmbeddingRequest,
    Event,
    GenerationRequest,
    Load,
    PageEvent,
    Running,
    StepLogits,
    TokenLogprobs,
)
from tsrun.limits import SCORED_ROWS, LimitOptions, Limits
from tsrun.output import Output
from tsrun.ranks import Ranks
from tsrun.sampler import NONE_ALLOWED, Draws
from tsrun.scoring import Scored, with_rows
from tsrun.step import Ints, Step
from tsrun.stream import Stream
from tsrun.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tsrun._core import Logprobs

Observer = Callable[[StepLogits], None]


class Engine:
    """Opens an artifact, verifies it, starts its ranks and serves requests until `close`.

    `observer` is called with the logits of every step before its tokens count; without one nothing is prepared for it.
    `progress` is called with bytes verified and bytes in all. With `follows_pages`, `page_events` has to be called after every step. Under
    torchrun this is for rank 0; see `tsrun.worker`.
    """

    def __init__(
        self,
        path: Path,
        options: LimitOptions | None = None,
        *,
        threads: int | None = None,
        observer: Observer | None = None,
        progress: Callable[[int, int], None] | None = None,
        follows_pages: bool = False,
    ) -> None:
        options = options or LimitOptions()
        # A large vocabulary that is stored as text takes seconds to read. Of an artifact that is refused nobody asks for it.
        tokenizer = Future[Tokenizer]()
        Thread(target=_read_tokenizer, args=(path, tokenizer), name="tsrun-tokenizer", daemon=True).start()
        self._ranks = Ranks(path, options, threads=threads, progress=progress)
        try:
            self.artifact: Artifact = self._ranks.artifact
            self.limits: Limits = self._ranks.limits
            self._gives = self.artifact.manifest.gives
            self.tokenizer = tokenizer.result() if self.artifact.has_tokenizer else None
            self._scheduler = self._new_scheduler(options, follows_pages)
        except BaseException:
            self._ranks.close()
            raise
        if observer is not None and self._gives != "logits":
            self._ranks.close()
            raise RequestError(str(path), f"the model gives {self._gives}, and there are no logits to observe")
        self._observer = observer
        self._depth = options.depth
        self._keeps_all = observer is not None or not options.screen or self._gives == "embeddings"
        self._running: StepPlan | None = None
        self._constraints = Constraints(self.artifact, self.tokenizer)
        self._over: str | None = None  # why nothing more runs here
        self._streams: dict[int, Stream] = {}
        self._unstarted: set[int] = set()  # requests that no step has computed so far
        self._scoring: set[int] = set()  # requests whose prompts are not scored to their ends
        self._events: list[Event] = []  # of aborts: they come out with the next step's
        self._next_request = 0

    def _new_scheduler(self, options: LimitOptions, follows_pages: bool) -> Scheduler:
        limits = asdict(self.limits)
        limits["max_context"] = self._longest
        # A window that no sequence outgrows is as good as one of the longest sequence.
        limits["windows"] = [(min(window, self.limits.max_context), pages) for window, pages in self.limits.windows]
        num_states, every = limits.pop("num_states"), limits.pop("snapshot_tokens")
        limits["states"] = [(every, num_states)] if num_states else []
        return Scheduler(
            **limits,
            num_rank_groups=self._ranks.program.sequence_groups,
            paddings=self._ranks.program.paddings,
            depth=options.depth,
            prefix_cache=options.prefix_cache,
            scored_rows=SCORED_ROWS,
            events=follows_pages,
            namespace=self.artifact.namespace,
        )

    @property
    def _longest(self) -> int:
        """Tokens of a prompt and its answer. That of an embedding is one that takes no room."""
        return self.limits.max_context + (self._gives == "embeddings")

    def submit(self, request: GenerationRequest | EmbeddingRequest) -> int:
        """Queue a request; return its number. RequestError when it can never run."""
        self._check_open()
        where = f"request {self._next_request}"
        if isinstance(request, EmbeddingRequest) != (self._gives == "embeddings"):
            raise RequestError(where, *(NO_EMBEDDINGS if isinstance(request, EmbeddingRequest) else NO_TOKENS))
        if isinstance(request, EmbeddingRequest):
            request = request.as_generation
        if not request.prompt:
            raise RequestError(where, "the prompt is empty", "give at least one token")
        prompt = np.asarray(request.prompt, dtype=np.int64)
        vocabulary = self.artifact.manifest.vocabulary
        outside = prompt[(prompt < 0) | (prompt >= vocabulary)]
        if outside.size:
            raise RequestError(where, f"token {outside[0]} is outside of the vocabulary of {vocabulary}")
        room = self._longest - len(prompt)
        if room < 1:
            what = f"the prompt has {len(prompt)} tokens, the longest context is {self.limits.max_context}"
            raise RequestError(where, what, "shorten it, or give more with --max-context, --num-pages or --cache-bytes")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise RequestError("max-tokens", f"got {request.max_tokens}", "give a positive count")
        for token in request.sampling.logit_bias:
            if not 0 <= token < vocabulary:
                raise RequestError("logit-bias", f"token {token} is outside of the vocabulary of {vocabulary}", "leave it out")
        if self._gives == "tokens" and request.needs_logits:
            what = "the model picks its tokens greedily, and gives no logits to choose by"
            raise RequestError(request.needs_logits[0], what, "leave it out, or use a model whose entry returns logits")
        if request.prompt_logprobs is not None and self._ranks.program.sequence_groups > 1:
            what = "groups of ranks keep sequences of their own, and give the logits of one row of each"
            raise RequestError("prompt-logprobs", what, "leave it out, or use an artifact without `paged@` caches")
        if request.deadline_seconds is not None and not request.deadline_seconds > 0:
            raise RequestError("deadline-seconds", f"got {request.deadline_seconds}", "give a positive number")
        if request.stop and self.tokenizer is None:
            raise RequestError("stop", "the artifact has no tokenizer, so there is no text to stop at", "leave it out")
        max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
        allowed = self._constraints.allowed(request)
        eos_ids = self.artifact.manifest.eos_token_ids
        now = time.monotonic()
        stream = Stream(request, decoder=self.tokenizer, eos_ids=eos_ids, max_tokens=max_tokens, allowed=allowed, now=now)
        try:
            self._scheduler.submit(
                self._next_request,
                prompt.astype(np.int32),
                max_tokens,
                user=request.user,
                priority=request.priority,
                deadline=math.inf if request.deadline_seconds is None else now + request.deadline_seconds,
                scores_prompt=request.prompt_logprobs is not None,
                salt=0 if request.cache_salt is None else _digest(request.cache_salt),
                now=now,
            )
        except ValueError as error:
            raise RequestError("", str(error)) from None
        self._streams[self._next_request] = stream
        self._unstarted.add(self._next_request)
        if stream.scores is not None:
            self._scoring.add(self._next_request)
        self._next_request += 1
        return self._next_request - 1

    def prepare(self, constraint: Constraint) -> None:
        """Compile a constraint, so that `submit` finds it. For any thread, while others run steps. RequestError when it can not be."""
        self._check_open()
        self._constraints.prepare(constraint)

    def seed_of(self, request: int) -> int:
        """The seed of an open request, also when the engine drew it."""
        return self._streams[request].sampler.seed

    def cached_tokens(self, request: int) -> int:
        """Tokens of the prompt that an open request found in the prefix cache."""
        return self._scheduler.cached_tokens(request)

    def abort(self, request: int) -> None:
        """End a request; its last event comes with the next step. One that has ended already is no error."""
        stream = self._streams.pop(request, None)
        if stream is not None:
            self._scheduler.abort(request)
            self._events.append(Event(request, (), stream.flush(), "abort", times=stream.times_of_end(time.monotonic())))

    def fail(self, request: int, error: TsrunError) -> None:
        """End a request by an error that it is not to blame for; else as `abort`."""
        stream = self._streams.pop(request, None)
        if stream is not None:
            self._scheduler.abort(request)
            times = stream.times_of_end(time.monotonic())
            self._events.append(Event(request, (), stream.flush(), "error", error=error.line, blame="engine", times=times))

    @property
    def num_open(self) -> int:
        """Requests whose last event has not come out yet."""
        return len(self._streams) + len(self._events)

    @property
    def has_work(self) -> bool:
        """Whether a request is open, or a step under way whose requests have all ended: pages are given back at its end."""
        return self.num_open > 0 or self._running is not None

    @property
    def num_preemptions(self) -> int:
        return self._scheduler.preemptions

    @property
    def num_pages(self) -> int:
        """Of the caches without a window, of all groups of ranks that keep sequences of their own."""
        return self.limits.num_pages * self._ranks.program.sequence_groups

    def load(self) -> Load:
        scheduler = self._scheduler
        return Load(
            scheduler.num_running, scheduler.num_waiting, scheduler.num_free_pages, scheduler.num_cached_pages, scheduler.preemptions
        )

    def running(self) -> list[Running]:
        """Requests that hold pages, who goes first first; to be asked between steps."""
        return [Running(*one) for one in self._scheduler.running()]

    def page_events(self) -> list[PageEvent]:
        """What the prefix cache took and gave up since the last call, in order; nothing unless the engine follows pages."""
        return [
            PageEvent(kind == "stored", group, number, parent, tuple(tokens.tolist()))
            for kind, group, number, parent, tokens in self._scheduler.page_events()
        ]

    def worker_pids(self) -> list[int]:
        """Processes of the other ranks that this engine started."""
        return self._ranks.worker_pids()

    def step(self) -> list[Event]:
        """Bring a step to its end; return what it brought. Nothing to do brings nothing. An error leaves nothing to go on from."""
        self._check_open()
        try:
            return self._step()
        except BaseException:
            self._over = "a step has failed before"
            raise

    def events(self) -> Iterator[Event]:
        """Run steps until no request is open, giving out events as they come; requests may be added meanwhile."""
        while self.num_open:
            yield from self.step()

    def close(self) -> None:
        self._over = self._over or "it was closed"
        self._ranks.close()
        self._constraints.close()

    def _check_open(self) -> None:
        if self._over is not None:
            raise MachineError("engine", self._over, "open another one")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _step(self) -> list[Event]:
        events, self._events = self._events, []
        if self._running is None:
            self._running = self._plan(events)
            if self._running is None:
                assert not self._streams, "the scheduler has nothing to do for the requests that are open"
                return events
            self._start(self._running)
        plan = self._running
        following = self._plan(events) if self._depth > 1 else None
        result = self._ranks.result()
        tokens_S = self._tokens(plan, result)
        failed = self._take_failed(plan, tokens_S)
        tokens_S = np.maximum(tokens_S, 0)
        self._running = following
        if following is not None:
            _fill(following.ids, tokens_S)
            self._start(following)
        sampled = [(s, request) for s, request in self._sampling(plan)]
        cached = {request: self._scheduler.cached_tokens(request) for _, request in sampled}  # a commit may end them
        now = time.monotonic()
        self._scheduler.commit(plan.step, tokens_S, now=now)
        for one, found in () if result.chosen is None else result.chosen.scores:
            scores = self._streams[one.request].scores if one.request in self._streams else None
            if scores is not None:
                scores.take(one.position, found)
        for s, request in sampled:
            if result.chosen is not None and s in result.chosen.embeddings:
                events.append(self._embedded(request, result.chosen.embeddings[s], cached[request], now))
                continue
            logprobs = None if result.chosen is None else result.chosen.logprobs.get(s)
            events.append(self._advance(request, int(tokens_S[s]), cached[request], logprobs, now))
        for event in failed:
            self._scheduler.abort(event.request)
        events.extend(failed)
        self._end_expired(events)
        return events

    def _start(self, plan: StepPlan) -> None:
        """Begin a step whose ids are all known."""
        self._unstarted &= self._streams.keys()
        for request in self._unstarted.intersection(plan.requests.tolist()) if self._unstarted else ():
            self._streams[request].start(time.monotonic())
            self._unstarted.discard(request)
        step, scored = Step.of(plan, self._keep(plan)), self._scored(plan)
        self._ranks.start(with_rows(step, scored) if scored else step, self._draws(plan, scored, step.keep))

    def _scored(self, plan: StepPlan) -> list[Scored]:
        """The tokens of prompts that a step's rows say the log probabilities of."""
        found: list[Scored] = []
        self._scoring &= self._streams.keys()
        for request in self._scoring:
            scores = self._streams[request].scores
            for s in np.flatnonzero(plan.requests == request):
                assert scores is not None
                found += scores.of_chunk(request, plan, int(s))
        return found

    def _plan(self, events: list[Event]) -> StepPlan | None:
        plan = self._scheduler.plan(time.monotonic())
        self._end_expired(events)
        return plan

    def _end_expired(self, events: list[Event]) -> None:
        """Of the requests that the scheduler ended, those whose streams did not end by themselves."""
        for request, _ in self._scheduler.ended():
            stream = self._streams.pop(request, None)
            if stream is not None:
                events.append(Event(request, (), stream.flush(), "deadline", times=stream.times_of_end(time.monotonic())))

    def _sampling(self, plan: StepPlan) -> Iterator[tuple[int, int]]:
        """Of the open requests that get a token from a step: their places in it and their numbers."""
        for s in np.flatnonzero(plan.samples):
            request = int(plan.requests[s])
            if request in self._streams:
                yield int(s), request

    def _keep(self, plan: StepPlan) -> Ints:
        """How many of each sequence's largest logits its sampling looks at, 0 for all; of one that gets no token the fewest."""
        keep_S = np.ones(len(plan.requests), dtype=np.int32)
        for s, request in self._sampling(plan):
            stream = self._streams[request]
            keep_S[s] = 0 if self._keeps_all else stream.first_keep if self._ranks.can_run_head else stream.keep
        return keep_S

    def _draws(self, plan: StepPlan, scored: list[Scored], keep_S: Ints) -> Draws | Embeds | None:
        """The tokens or embeddings that a step is to bring; None where the program picks tokens."""
        if self._gives == "tokens":
            return None
        if self._gives == "embeddings":
            return Embeds([s for s, _ in self._sampling(plan)])
        samplers: list[Sampler | None] = [None] * len(plan.requests)
        answers: list[Allowed] = []
        asked: dict[int, Allowed] = {}
        for s, request in self._sampling(plan):
            stream = self._streams[request]
            samplers[s] = stream.sampler
            if stream.allowed is None:
                continue
            if keep_S[s] == 1:
                asked[s] = stream.allowed
            else:
                answers.append(stream.allowed)
        masks = self._constraints.fill(answers) if answers else None
        if not scored:
            return Draws(samplers, plan.lengths, masks, keep=keep_S, asked=asked)
        nothing = np.zeros(len(scored), dtype=np.int32)
        positions, keep_S = np.concatenate((plan.lengths, nothing)), np.concatenate((keep_S, nothing))
        return Draws([*samplers, *[None] * len(scored)], positions, masks, scored, keep_S, asked)

    def _tokens(self, plan: StepPlan, result: Output) -> Ints:
        """The next token of each sequence of the step, 0 where it gets none, negative where there is none for it."""
        if self._observer is not None:
            self._observer(StepLogits(plan.requests, plan.lengths - 1, plan.samples, result.numbers()[: len(plan.requests)]))
        picked_S = result.tokens()
        tokens_S = np.zeros(len(plan.requests), dtype=np.int32)
        for s, _ in self._sampling(plan):
            tokens_S[s] = picked_S[s]
        return tokens_S

    def _take_failed(self, plan: StepPlan, tokens_S: Ints) -> list[Event]:
        """End the requests of a step that there is no token for; the others go on, and their constraints take the tokens."""
        failed: list[Event] = []
        for s, request in list(self._sampling(plan)):
            stream, token = self._streams[request], int(tokens_S[s])
            if token < 0:
                del self._streams[request]
                error = self._no_token(token, int(plan.lengths[s]), stream.allowed)
                blame: Blame = "request" if token == NONE_ALLOWED else "model"
                times = stream.times_of_end(time.monotonic())
                failed.append(Event(request, (), stream.flush(), "error", error=error.line, blame=blame, times=times))
            elif stream.allowed is not None:
                stream.allowed.take(token)
        return failed

    def _no_token(self, why: int, position: int, allowed: Allowed | None) -> RequestError:
        where = f"position {position}"
        if why == NONE_ALLOWED:
            what = (allowed and allowed.error) or "none of the tokens that it allows has a finite logit"
            return RequestError(where, f"the constraint can not go on: {what}", "give another constraint")
        what = "embedding" if self._gives == "embeddings" else "largest logit"
        return RequestError(where, f"the model's {what} is not finite", "check the weights and the dtype")

    def _embedded(self, request: int, embedding: bytes, cached_tokens: int, now: float) -> Event:
        stream = self._streams.pop(request)
        self._scheduler.finish(request)
        return Event(request, (), "", "stop", cached_tokens, embedding=embedding, times=stream.times_of_token(now, ends=True))

    def _advance(self, request: int, token: int, cached_tokens: int, logprobs: Logprobs | None, now: float) -> Event:
        stream = self._streams[request]
        text, reason = stream.take(token)
        times = stream.times_of_token(now, ends=reason is not None)
        if reason is not None:
            del self._streams[request]
            self._scheduler.finish(request)
        found = () if logprobs is None else (_token_logprobs(token, logprobs),)
        scores: tuple[TokenLogprobs, ...] = ()
        if request in self._scoring and stream.scores is not None:
            scores = tuple(_token_logprobs(*each) for each in stream.scores.all())
            self._scoring.discard(request)
        return Event(request, (token,), text, reason, cached_tokens, stream.stopped_by, found, scores, times=times)


def _token_logprobs(token: int, found: Logprobs) -> TokenLogprobs:
    return TokenLogprobs(token, found[0], tuple(found[1]))


def _read_tokenizer(path: Path, found: Future[Tokenizer]) -> None:
    try:
        found.set_result(Tokenizer(path / "tokenizer"))
    except Exception as error:
        found.set_exception(error)


def _fill(ids_T: Ints, tokens_S: NDArray[np.int32]) -> None:
    """Put the tokens of the step before where a step has only the places of their sequences in it."""
    unknown = np.flatnonzero(ids_T < 0)
    ids_T[unknown] = tokens_S[~ids_T[unknown]]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
