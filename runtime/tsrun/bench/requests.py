"""Requests that have nothing in common, for `tsrun bench serve`: a prompt of so many tokens, an answer of so many."""

from __future__ import annotations

from dataclasses import dataclass

from tsrun.bench.sessions import Plan, Session, Turn
from tsrun.bench.words import text


@dataclass(frozen=True, slots=True)
class Requests:
    """Sessions of one turn. shared: of the prompt's tokens, those that all have."""

    plan: Plan
    prompt_tokens: int
    answer_tokens: int
    shared: int = 0

    def session(self, number: int) -> Session:
        per_word = self.plan.tokens_per_word
        own = text(max(1, round((self.prompt_tokens - self.shared) / per_word)), self.plan.seed, self.plan.salt, number)
        common = text(round(self.shared / per_word), self.plan.seed, "shared") if self.shared else ""
        return Session(number, common, (Turn(own, False, self.answer_tokens, 0.0),))
