"""Conversations that many people have at once: each turn's prompt is everything before it, and several begin with the same words."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.runtime.toy import BOS

from tsrun.engine import Engine
from tsrun.generation import Event, GenerationRequest
from tsrun.limits import LimitOptions

Turn = tuple[int, int]
"""A conversation's number, and how many of its turns were before."""

STOPS = tuple("abcdefghijklmnopqrstuvwxyz")
"""Letters that end an answer early, so that a request's end is often not known when its next token is planned."""
MOST_TOKENS = 12


@dataclass(frozen=True)
class Script:
    """What the people say: `said[c][k]` is the k-th turn of conversation c; `openings[c]` what it begins with."""

    openings: tuple[tuple[int, ...], ...]
    said: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def turns(self) -> list[Turn]:
        return [(c, k) for c, turns in enumerate(self.said) for k in range(len(turns))]


def script(conversations: int, turns: int, *, openings: int = 4, seed: int = 0) -> Script:
    """`openings` different beginnings, of which each conversation has one."""
    chance = random.Random(seed)

    def words(least: int, most: int) -> tuple[int, ...]:
        return tuple(chance.randrange(32, 127) for _ in range(chance.randint(least, most)))

    beginnings = [(BOS, *words(6, 30)) for _ in range(openings)]
    said = tuple(tuple(words(1, 5) for _ in range(turns)) for _ in range(conversations))
    return Script(tuple(beginnings[c % openings] for c in range(conversations)), said)


def request_of(prompt: list[int]) -> GenerationRequest:
    return GenerationRequest(prompt, MOST_TOKENS, stop=STOPS)


@dataclass
class Outcome:
    """The tokens of every turn; how often a request was preempted; tokens of prompts in all, and of those that were found cached."""

    answers: dict[Turn, list[int]]
    preemptions: int
    prompt_tokens: int
    cached_tokens: int


def one_by_one(path: Path, script: Script) -> dict[Turn, list[int]]:
    """The answers of an engine that does nothing else meanwhile, forgets everything, and has room for it all."""
    answers: dict[Turn, list[int]] = {}
    with Engine(path, LimitOptions(depth=1, prefix_cache=False), threads=1) as engine:
        for c, turns in enumerate(script.said):
            history = list(script.openings[c])
            for k, words in enumerate(turns):
                history += words
                engine.submit(request_of(history))
                answers[c, k] = [token for event in engine.events() for token in event.token_ids]
                history += answers[c, k]
    return answers


class _Crowd:
    """All conversations at once: each goes on as soon as it has its answer, or some steps later."""

    def __init__(self, engine: Engine, script: Script, chance: random.Random) -> None:
        self._engine = engine
        self._script = script
        self._chance = chance
        self._history = [list(opening) for opening in script.openings]
        self._waiting: list[Turn] = [(c, 0) for c in range(len(script.said))]  # for their turn to be said
        self._open: dict[int, Turn] = {}
        self._others: dict[int, int] = {}  # requests that will be aborted, and after how many steps
        self._prompts: list[list[int]] = []  # that were submitted
        self.outcome = Outcome({}, 0, 0, 0)

    def play(self, *, aborts: bool) -> Outcome:
        while self._waiting or self._open or self._engine.num_open:
            self._chance.shuffle(self._waiting)
            for _ in range(self._chance.choice((0, 1, 1, 2, 5))):
                if self._waiting:
                    self._say(self._waiting.pop())
            if aborts:
                self._disturb()
            for event in self._engine.step():
                self._take(event)
        self.outcome.preemptions = self._engine.num_preemptions
        return self.outcome

    def _say(self, turn: Turn) -> None:
        c, k = turn
        self._history[c] += self._script.said[c][k]
        self._prompts.append(list(self._history[c]))
        self.outcome.prompt_tokens += len(self._history[c])
        self.outcome.answers[turn] = []
        self._open[self._engine.submit(request_of(self._history[c]))] = turn

    def _disturb(self) -> None:
        """Other requests, with prompts that may be cached or become it, come and are aborted at some moment."""
        for _ in range(self._chance.choice((0, 0, 1, 2)) if self._prompts else 0):
            prompt = self._chance.choice(self._prompts)
            prompt = prompt[: self._chance.randint(1, len(prompt))] + [self._chance.randrange(256)] * self._chance.randint(0, 9)
            number = self._engine.submit(GenerationRequest(prompt, 9, ignore_eos=True))
            self._others[number] = self._chance.randint(0, 6)
        for number, steps in list(self._others.items()):
            self._others[number] = steps - 1
            if steps == 0:
                self._engine.abort(number)
                del self._others[number]

    def _take(self, event: Event) -> None:
        turn = self._open.get(event.request)
        if turn is None:
            return
        c, k = turn
        answer = self.outcome.answers[turn]
        if event.token_ids and not answer:
            self.outcome.cached_tokens += event.cached_tokens
        answer.extend(event.token_ids)
        if event.finish_reason is not None:
            assert event.finish_reason in ("stop", "length")
            del self._open[event.request]
            self._history[c] += answer
            if k + 1 < len(self._script.said[c]):
                self._waiting.append((c, k + 1))


def all_at_once(path: Path, script: Script, options: LimitOptions, *, seed: int = 0, aborts: bool = False) -> Outcome:
    with Engine(path, options, threads=1) as engine:
        return _Crowd(engine, script, random.Random(seed)).play(aborts=aborts)


def differing(found: Mapping[Turn, list[int]], expected: Mapping[Turn, list[int]]) -> dict[Turn, tuple[list[int], list[int]]]:
    """Turns whose answers differ. A conversation is compared up to its first difference, which all later ones follow from."""
    first: dict[int, Turn] = {}
    for c, k in sorted(expected):
        if c not in first and found.get((c, k)) != expected[c, k]:
            first[c] = (c, k)
    return {turn: (found.get(turn, []), expected[turn]) for turn in first.values()}
