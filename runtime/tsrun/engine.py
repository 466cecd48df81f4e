"""The engine: requests in, events out; plan, run, sample and commit, one step at a time.

Dimensions: S sequences in the step, V vocabulary. For one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tsrun._core import Scheduler, StepPlan
from tsrun.artifact import Artifact
from tsrun.errors import RequestError
from tsrun.generation import Event, GenerationRequest, StepLogits
from tsrun.limits import LimitOptions, Limits
from tsrun.ranks import Ranks
from tsrun.sampler import choose
from tsrun.stream import Stream
from tsrun.tokenizer import Tokenizer

Observer = Callable[[StepLogits], None]


class Engine:
    """Opens an artifact, verifies it, starts its ranks and serves requests until `close`.

    `observer` is called with the logits of every step before they are sampled; without one nothing is prepared for it.
    `progress` is called with bytes verified and bytes in all. Under torchrun this is for rank 0; see `tsrun.worker`.
    """

    def __init__(
        self,
        path: Path,
        options: LimitOptions | None = None,
        *,
        threads: int | None = None,
        observer: Observer | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._ranks = Ranks(path, options or LimitOptions(), threads=threads, progress=progress)
        try:
            self.artifact: Artifact = self._ranks.artifact
            self.limits: Limits = self._ranks.limits
            self.tokenizer = Tokenizer.of(self.artifact) if self.artifact.has_tokenizer else None
            self._scheduler = Scheduler(
                **asdict(self.limits), num_groups=self._ranks.program.sequence_groups, paddings=self._ranks.program.paddings
            )
        except BaseException:
            self._ranks.close()
            raise
        self._gives_tokens = self.artifact.manifest.gives == "tokens"
        if observer is not None and self._gives_tokens:
            self._ranks.close()
            raise RequestError(str(path), "the model gives tokens, and there are no logits to observe")
        self._observer = observer
        self._streams: dict[int, Stream] = {}
        self._events: list[Event] = []  # of aborts: they come out with the next step's
        self._next_request = 0

    def submit(self, request: GenerationRequest) -> int:
        """Queue a request; return its number. RequestError when it can never run."""
        where = f"request {self._next_request}"
        if not request.prompt:
            raise RequestError(where, "the prompt is empty", "give at least one token")
        prompt = np.asarray(request.prompt, dtype=np.int64)
        vocabulary = self.artifact.manifest.vocabulary
        outside = prompt[(prompt < 0) | (prompt >= vocabulary)]
        if outside.size:
            raise RequestError(where, f"token {outside[0]} is outside of the vocabulary of {vocabulary}")
        room = self.limits.max_context - len(prompt)
        if room < 1:
            what = f"the prompt has {len(prompt)} tokens, the longest context is {self.limits.max_context}"
            raise RequestError(where, what, "shorten it, or give more with --max-context, --num-pages or --cache-bytes")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise RequestError("max-tokens", f"got {request.max_tokens}", "give a positive count")
        if self._gives_tokens and not request.sampling.greedy:
            what = "the model picks its tokens greedily, and gives no probabilities to sample from"
            raise RequestError("temperature", what, "leave it at 0, or use a model whose entry returns logits")
        if request.stop and self.tokenizer is None:
            raise RequestError("stop", "the artifact has no tokenizer, so there is no text to stop at", "leave it out")
        max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
        stream = Stream(request, decoder=self.tokenizer, eos_ids=self.artifact.manifest.eos_token_ids, max_tokens=max_tokens)
        try:
            self._scheduler.submit(self._next_request, prompt.astype(np.int32), max_tokens)
        except ValueError as error:
            raise RequestError("", str(error)) from None
        self._streams[self._next_request] = stream
        self._next_request += 1
        return self._next_request - 1

    def seed_of(self, request: int) -> int:
        """The seed of an open request, also when the engine drew it."""
        return self._streams[request].seed

    def abort(self, request: int) -> None:
        """End a request; its last event comes with the next step. One that has ended already is no error."""
        stream = self._streams.pop(request, None)
        if stream is not None:
            self._scheduler.abort(request)
            self._events.append(Event(request, (), stream.flush(), "abort"))

    @property
    def num_open(self) -> int:
        """Requests whose last event has not come out yet."""
        return len(self._streams) + len(self._events)

    @property
    def num_preemptions(self) -> int:
        return self._scheduler.preemptions

    def worker_pids(self) -> list[int]:
        """Processes of the other ranks that this engine started."""
        return self._ranks.worker_pids()

    def step(self) -> list[Event]:
        """Run one step; return what it brought. Nothing to do brings nothing."""
        events, self._events = self._events, []
        plan = self._scheduler.plan()
        if plan is None:
            assert not self._streams, "the scheduler has nothing to do for the requests that are open"
            return events
        result = self._ranks.run(plan)
        if self._gives_tokens:
            tokens_S = self._checked(plan, result.numpy())
        else:
            if self._observer is not None:
                self._observer(StepLogits(plan.requests, plan.lengths - 1, plan.samples, result))
            tokens_S = self._sample(plan, result.float().numpy())
        sampled = [(int(plan.requests[s]), int(tokens_S[s])) for s in np.flatnonzero(plan.samples)]
        self._scheduler.commit(plan.step, tokens_S)
        for request, token in sampled:
            events.append(self._advance(request, token))
        return events

    def events(self) -> Iterator[Event]:
        """Run steps until no request is open, giving out events as they come; requests may be added meanwhile."""
        while self.num_open:
            yield from self.step()

    def close(self) -> None:
        self._ranks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _checked(self, plan: StepPlan, tokens_S: NDArray[np.int32]) -> NDArray[np.int32]:
        """A copy of the tokens that the model picked: -1 stands for a largest logit that is not finite."""
        for s in np.flatnonzero(plan.samples):
            if tokens_S[s] < 0:
                raise RequestError(
                    f"position {int(plan.lengths[s])}", "the model's largest logit is not finite", "check the weights and the dtype"
                )
        return np.maximum(tokens_S, 0)

    def _sample(self, plan: StepPlan, logits_SV: NDArray[np.float32]) -> NDArray[np.int32]:
        tokens_S = np.zeros(len(plan.requests), dtype=np.int32)
        for s in np.flatnonzero(plan.samples):
            stream = self._streams[int(plan.requests[s])]
            tokens_S[s] = choose(logits_SV[s], stream.sampling, stream.seed, int(plan.lengths[s]))
        return tokens_S

    def _advance(self, request: int, token: int) -> Event:
        text, reason = self._streams[request].take(token)
        if reason is not None:
            del self._streams[request]
            self._scheduler.finish(request)
        return Event(request, (token,), text, reason)
