"""Sessions as they are to be run, the same from the same seed: what is said, how long answers are, who waits how long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from tsrun.bench.words import generator, text

if TYPE_CHECKING:
    import numpy as np

    from tsrun.bench.workload import Length, Spoken, Workload

_LEAST_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """What a small model makes smaller: lengths that are read, answers, turns, and times."""

    lengths: float = 1.0
    answers: float = 1.0
    turns: float = 1.0
    pace: float = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. say: what is new in it; seconds: that pass before it; cancel_after: tokens after which the client goes away; fork: turns
    of a sub-agent that come before it, from the conversation as it then is; recorded: what a trace has for the answer."""

    say: str
    by_tool: bool
    answer_tokens: int
    seconds: float
    cancel_after: int | None = None
    fork: tuple[Turn, ...] = ()
    recorded: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """summary: what stands for a conversation that got too long; hostile: how its requests hurt."""

    number: int
    system: str
    turns: tuple[Turn, ...]
    summary: str = ""
    tools: tuple[dict[str, object], ...] = ()
    hostile: Literal["nonce", "schema"] | None = None


class Sessions(Protocol):
    """Where sessions come from: a plan, or a trace."""

    @property
    def plan(self) -> Plan: ...

    def session(self, number: int) -> Session:
        """Any number has one, always the same."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sessions of a workload. tokens_per_word: of the model's tokenizer, on `words.text`; salt: two plans of one seed have sessions of the
    same shape, and of the same words only where their salts are equal (but for harness and repository, which a server has seen)."""

    workload: Workload
    seed: int
    scale: Scale
    tokens_per_word: float
    salt: str = ""

    @property
    def plan(self) -> Plan:
        return self

    @property
    def context(self) -> int:
        return max(256, round(self.workload.context * self.scale.lengths))

    def session(self, number: int) -> Session:
        shape, load = generator(self.seed, number), self.workload
        harness = int(shape.integers(len(load.harness.tokens)))
        group = int(shape.integers(load.repository.groups))
        system = self._text(load.harness.tokens[harness] * self.scale.lengths, "harness", harness)
        layer = self._text(load.repository.tokens.draw(generator(self.seed, "group", group)) * self.scale.lengths, "repository", group)
        turns = self._turns(number, shape, self._count(load.turns.count, shape))
        task = self._text(load.task.tokens.draw(shape) * self.scale.lengths, self.salt, number, "task")
        turns = [replace(turns[0], say=f"{layer}\n\n{task}", by_tool=False, seconds=0.0), *turns[1:]]
        forks, hostile = shape.random(), shape.random()
        if forks < load.forks.share:
            turns = self._with_forks(turns, number, shape)
        if shape.random() < load.ends.abandoned_share:
            turns = turns[: int(shape.integers(1, len(turns) + 1))]
        nonce = hostile < load.hostile.nonce_share
        schema = not nonce and hostile < load.hostile.nonce_share + load.hostile.schema_share
        return Session(
            number,
            system,
            tuple(turns),
            summary=self._text(load.summary.draw(shape) * self.scale.lengths, self.salt, number, "summary"),
            tools=_tools(system, load.harness.tools_share),
            hostile="nonce" if nonce else "schema" if schema else None,
        )

    def _turns(self, number: int, shape: np.random.Generator, count: int, *parts: object) -> list[Turn]:
        made = []
        for index in range(count):
            load = self.workload
            by_tool = bool(shape.random() < load.answers.tool_share)
            spoken: Spoken = load.tools if by_tool else load.human
            tokens = spoken.tokens.draw(shape) * self.scale.lengths
            answer = max(_LEAST_TOKENS, round(load.answers.tokens.draw(shape) * self.scale.answers))
            cancels, where = shape.random(), shape.random()
            made.append(
                Turn(
                    self._text(tokens, self.salt, number, *parts, index),
                    by_tool,
                    answer,
                    spoken.seconds.draw(shape) * self.scale.pace,
                    max(1, round(where * answer)) if cancels < load.ends.cancelled_share else None,
                )
            )
        return made

    def _with_forks(self, turns: list[Turn], number: int, shape: np.random.Generator) -> list[Turn]:
        forks = self.workload.forks
        for fork in range(self._count(forks.count, shape, self.scale.turns)):
            index = int(shape.integers(len(turns)))
            if index:  # the first turn has no conversation to go on from
                turns[index] = replace(
                    turns[index], fork=tuple(self._turns(number, shape, self._count(forks.turns, shape), "fork", fork)), by_tool=True
                )
        return turns

    def _count(self, length: Length, shape: np.random.Generator, scale: float | None = None) -> int:
        return max(1, round(length.draw(shape) * (self.scale.turns if scale is None else scale)))

    def _text(self, tokens: float, *parts: object) -> str:
        return text(max(_LEAST_TOKENS, round(tokens / self.tokens_per_word)), self.seed, *parts)


def _tools(system: str, share: float) -> tuple[dict[str, object], ...]:
    """Of the harness' words so many as schemas: for servers that are given tools as such, which take them out of the system message."""
    words = system.split()
    described = words[: int(len(words) * share)]
    each = 120
    return tuple(_tool(index, " ".join(described[begin : begin + each])) for index, begin in enumerate(range(0, len(described), each)))


def _tool(index: int, description: str) -> dict[str, object]:
    properties = {"path": {"type": "string"}, "content": {"type": "string"}, "limit": {"type": "integer"}}
    parameters = {"type": "object", "properties": properties, "required": ["path"]}
    return {"type": "function", "function": {"name": f"tool_{index}", "description": description, "parameters": parameters}}


def without_tools(session: Session, share: float) -> str:
    """Its system message where tools are given apart."""
    words = session.system.split()
    return " ".join(words[int(len(words) * share) :])
