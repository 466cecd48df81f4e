"""The engine: requests in, events out; plan, run, sample and commit, step after step.

With a depth of 2 the next step is planned while one runs, before the tokens of that one are known; as soon as they are, they go into the
next, which starts, and what they mean for their requests is found out while it runs. Where a device can look the tokens up by itself, the
next step starts at once, so that it goes from one to the other without the host. Where the next step is likely to have drafts, which depend
on these tokens, it is planned after them instead. Dimensions: T tokens, S sequences and D drafts in the step, V vocabulary. A request for
an embedding is one for a token, but for what becomes of its row. For one thread at a time.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

import numpy as np

from tsrun._core import Sampler, StepPlan
from tsrun.allowed import Allowed
from tsrun.artifact import Artifact
from tsrun.branches import Branch, Branches
from tsrun.checking import Checking
from tsrun.constraint import Constraint
from tsrun.constraints import Constraints
from tsrun.draft_sources import speculation_of
from tsrun.drafts import Drafts
from tsrun.embedding import Embeds
from tsrun.errors import MachineError, RequestError, TsrunError
from tsrun.generation import (
    Blame,
    EmbeddingRequest,
    Event,
    GenerationRequest,
    Load,
    PageEvent,
    Running,
    Speculated,
    StepLogits,
    TokenLogprobs,
)
from tsrun.limits import MOST_DRAFTS, LimitOptions, Limits
from tsrun.new_scheduler import new_scheduler
from tsrun.outcome import Outcome
from tsrun.ranks import Ranks
from tsrun.sampler import NONE_ALLOWED, Draws
from tsrun.scoring import Scored
from tsrun.step import Ints, Step, with_rows
from tsrun.stream import Stream
from tsrun.tokenizer import Tokenizer

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
            has_all_rows = self._ranks.program.sequence_groups == 1
            self._checking = Checking(self.artifact.manifest, self.limits.max_context, has_all_rows, self.tokenizer is not None)
            longest, namespace, program = self._checking.longest, self.artifact.namespace, self._ranks.program
            self._scheduler = new_scheduler(
                self.limits, options, program, longest=longest, follows_pages=follows_pages, namespace=namespace
            )
            self._speculation = speculation_of(options, self.artifact, program, self.limits, self._ranks.draft)
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
        self._drafts = Drafts()  # of the step that runs
        self._decided = False  # whether its largest logits are the tokens that come of it
        self._branches = Branches(self.limits, program)
        self._ran: Step
        self._wanted: dict[int, list[Branch]] = {}  # branches of the next step, by request
        self._constraints = Constraints(self.artifact, self.tokenizer, 1 + (MOST_DRAFTS if self._speculation.is_on else 0))
        self._over: str | None = None  # why nothing more runs here
        self._streams: dict[int, Stream] = {}
        self._unstarted: set[int] = set()  # requests that no step has computed so far
        self._scoring: set[int] = set()  # requests whose prompts are not scored to their ends
        self._events: list[Event] = []  # of aborts: they come out with the next step's
        self._next_request = 0

    def submit(self, request: GenerationRequest | EmbeddingRequest) -> int:
        """Queue a request; return its number. RequestError when it can never run."""
        self._check_open()
        request, max_tokens = self._checking.checked(f"request {self._next_request}", request)
        allowed = self._constraints.allowed(request)
        eos_ids = self.artifact.manifest.eos_token_ids
        now = time.monotonic()
        stream = Stream(request, decoder=self.tokenizer, eos_ids=eos_ids, max_tokens=max_tokens, allowed=allowed, now=now)
        try:
            self._scheduler.submit(
                self._next_request,
                np.asarray(request.prompt, dtype=np.int32),
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
        stream.drafter = self._speculation.drafter(request, stream.end_ids)
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
        stream = self._close(request)
        if stream is not None:
            self._scheduler.abort(request)
            self._events.append(Event(request, (), stream.flush(), "abort", times=stream.times_of_end(time.monotonic())))

    def fail(self, request: int, error: TsrunError) -> None:
        """End a request by an error that it is not to blame for; else as `abort`."""
        stream = self._close(request)
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

    @property
    def speculated(self) -> Speculated:
        return self._speculation.total

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
        self._speculation.begin(time.monotonic())
        is_late = self._running is None and self._depth > 1
        if self._running is None:
            self._propose()
            self._running = self._plan(events)
            if self._running is None:
                assert not self._streams, "the scheduler has nothing to do for the requests that are open"
                return events
            self._start(self._running)
        plan, ran, drafts, decided = self._running, self._ran, self._drafts, self._decided
        following = self._plan(events) if self._depth > 1 and not self._waits(plan) else None
        if following is not None and decided:
            self._start(following)
        result = self._ranks.result()
        outcome = Outcome(plan, ran, drafts, result, [s for s, _ in self._sampling(plan)])
        if self._observer is not None:
            self._observer(outcome.logits())
        failed = self._take_failed(plan, outcome)
        self._branches.keep(grown for grown in map(outcome.branch, outcome.came) if grown is not None)
        self._running = following
        if following is not None and not decided:
            _fill(following.ids, outcome.last_tokens())
            self._start(following)
        now = time.monotonic()
        sampled = self._sampling(plan)
        for s, request in sampled:
            drafter = self._streams[request].drafter
            if drafter is not None:
                drafter.take(outcome.tokens(s))
        chain = None if following is not None else self._speculation.chain(plan, outcome, self._streams)
        if chain is not None:
            self._ranks.start_chain(chain)
        cached = {request: self._scheduler.cached_tokens(request) for _, request in sampled}  # a commit may end them
        self._speculation.end(None if is_late and not drafts.tokens.size else self._rows_of_decodes(plan, drafts), now)
        tokens, counts = outcome.for_scheduler()
        self._scheduler.commit(plan.step, tokens, counts, now=now)
        for one, found in () if result.chosen is None else result.chosen.scores:
            scores = self._streams[one.request].scores if one.request in self._streams else None
            if scores is not None:
                scores.take(one.position, found)
        for s, request in sampled:
            if result.chosen is not None and s in result.chosen.embeddings:
                events.append(self._embedded(request, result.chosen.embeddings[s], cached[request], now))
            else:
                events.append(self._advance(request, s, outcome, cached[request], now))
        for event in failed:
            self._scheduler.abort(event.request)
        events.extend(failed)
        self._end_expired(events)
        if chain is not None:
            self._ranks.result()
            self._speculation.guessed(chain)
        if not self._streams:
            self._speculation.rest()
        return events

    def _close(self, request: int) -> Stream | None:
        """Forget a request that ends, where it is still open."""
        stream = self._streams.pop(request, None)
        if stream is not None and stream.drafter is not None:
            stream.drafter.close()
        return stream

    def _propose(self) -> None:
        """Drafts for the next step; all tokens before it are known."""
        if self._speculation.is_on:
            drafts, self._wanted = self._speculation.propose(self._streams)
            for request, tokens in drafts.items():
                self._scheduler.draft(request, np.array(tokens, dtype=np.int32))

    def _waits(self, plan: StepPlan) -> bool:
        """Whether the step after one is better planned when the tokens of that one are known."""
        if not self._speculation.is_on:
            return False
        return self._speculation.waits(plan, self._drafts, [self._streams[request] for _, request in self._sampling(plan)])

    def _start(self, plan: StepPlan) -> None:
        """Begin a step whose ids are all known."""
        self._unstarted &= self._streams.keys()
        for request in self._unstarted.intersection(plan.requests.tolist()) if self._unstarted else ():
            self._streams[request].start(time.monotonic())
            self._unstarted.discard(request)
        self._speculation.follow(plan)
        wanted, self._wanted = self._wanted, {}
        step, branches = self._branches.grow(plan, Step.of(plan, self._keep(plan)), wanted)
        scored = self._scored(plan)
        self._ran, self._drafts = step, Drafts.of(plan).beside(branches)
        drafts = self._drafts
        if drafts.tokens.size:
            step = with_rows(step, drafts.rows, step.keep[drafts.sequences])
        if scored:
            step = with_rows(step, [one.row for one in scored], [0] * len(scored))
        draws = self._draws(plan, step, drafts, scored)
        self._decided = self._is_decided(draws)
        self._ranks.start(step, draws)

    @staticmethod
    def _rows_of_decodes(plan: StepPlan, drafts: Drafts) -> int | None:
        """How many a step has, if no other."""
        rows = len(plan.requests) + drafts.tokens.size
        begins, ends = plan.spans.T
        return rows + sum(one.branch.num_rows for one in drafts.branches) if (ends - begins).sum() == rows else None

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
            stream = self._close(request)
            if stream is not None:
                events.append(Event(request, (), stream.flush(), "deadline", times=stream.times_of_end(time.monotonic())))

    def _sampling(self, plan: StepPlan) -> list[tuple[int, int]]:
        """Of the open requests that get a token from a step: their places in it and their numbers."""
        requests = enumerate(zip(plan.requests.tolist(), plan.samples.tolist(), strict=True))
        return [(s, request) for s, (request, samples) in requests if samples and request in self._streams]

    def _keep(self, plan: StepPlan) -> Ints:
        """How many of each sequence's largest logits its sampling looks at, 0 for all; of one that gets no token the fewest."""
        kept = [1] * len(plan.requests)
        for s, request in self._sampling(plan):
            stream = self._streams[request]
            kept[s] = 0 if self._keeps_all else stream.first_keep if self._ranks.can_run_head else stream.keep
        return np.array(kept, dtype=np.int32)

    def _draws(self, plan: StepPlan, step: Step, drafts: Drafts, scored: list[Scored]) -> Draws | Embeds | None:
        """The tokens or embeddings that a step is to bring; None where the program picks tokens."""
        if self._gives == "tokens":
            return None
        if self._gives == "embeddings":
            return Embeds([s for s, _ in self._sampling(plan)])
        num_sequences = len(plan.requests) + len(drafts.branches)
        samplers: list[Sampler | None] = [None] * num_sequences
        asked: dict[int, Allowed] = {}
        told: dict[int, Allowed] = {}
        for s, request in self._sampling(plan):
            stream = self._streams[request]
            samplers[s] = stream.sampler
            if stream.allowed is not None:
                (asked if step.keep[s] == 1 else told)[s] = stream.allowed
        masks = self._constraints.fill([(allowed, drafts.of_sequence(s)) for s, allowed in told.items()]) if told else None
        return Draws(samplers, step.lengths[:num_sequences], masks, scored, step.keep, asked, told, drafts)

    def _is_decided(self, draws: Draws | Embeds | None) -> bool:
        """Whether a step's tokens are the largest logits of its rows, whatever the host says, and nothing runs before the next step."""
        if not isinstance(draws, Draws) or not self._ranks.runs_ahead or self._speculation.runs_a_model:
            return False
        is_plain = not (draws.drafts.tokens.size or draws.drafts.branches or draws.scored or draws.asked or draws.told)
        return is_plain and draws.keep is not None and bool((draws.keep == 1).all())

    def _take_failed(self, plan: StepPlan, outcome: Outcome) -> list[Event]:
        """End the requests of a step that there is no further token for; the others go on."""
        failed: list[Event] = []
        if not outcome.has_failures:
            return failed
        for s, request in self._sampling(plan):
            failure = outcome.failure(s)
            if failure is None:
                continue
            if outcome.tokens(s):  # drafts came before
                failed.append(self._advance(request, s, outcome, self._scheduler.cached_tokens(request), time.monotonic()))
            stream = self._close(request)
            if stream is None:  # they ended it
                continue
            error = self._no_token(*failure, stream.allowed)
            blame: Blame = "request" if failure[0] == NONE_ALLOWED else "model"
            times = stream.times_of_end(time.monotonic())
            failed.append(Event(request, (), stream.flush(), "error", error=error.line, blame=blame, times=times))
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

    def _advance(self, request: int, s: int, outcome: Outcome, cached_tokens: int, now: float) -> Event:
        """What a step brought an open request, up to where it ends."""
        stream = self._streams[request]
        came = outcome.tokens(s)
        text, reason, count = "", None, 0
        while reason is None and count < len(came):
            more, reason = stream.take(came[count])
            text += more
            count += 1
        times = stream.times_of_token(now, ends=reason is not None)
        if reason is not None:
            self._close(request)
            self._scheduler.finish(request)
        scores: tuple[TokenLogprobs, ...] = ()
        if request in self._scoring and stream.scores is not None:
            scores = tuple(TokenLogprobs(token, found[0], tuple(found[1])) for token, found in stream.scores.all())
            self._scoring.discard(request)
        drafted, accepted = outcome.num_drafted(s), min(count, len(outcome.came[s]) - 1)
        if drafted:
            self._speculation.count(drafted, accepted)
        return Event(
            request,
            tuple(came[:count]),
            text,
            reason,
            cached_tokens,
            stream.stopped_by,
            tuple(outcome.logprobs(s)[:count]),
            scores,
            drafted=drafted,
            accepted=accepted,
            times=times,
        )


def _read_tokenizer(path: Path, found: Future[Tokenizer]) -> None:
    try:
        found.set_result(Tokenizer(path / "tokenizer"))
    except Exception as error:
        found.set_exception(error)


def _fill(ids_T: Ints, tokens_S: Ints) -> None:
    """Put the tokens of the step before where a step has only the places of their sequences in it."""
    unknown = np.flatnonzero(ids_T < 0)
    ids_T[unknown] = tokens_S[~ids_T[unknown]]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
