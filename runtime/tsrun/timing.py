"""When a batch of requests was submitted, saw its first tokens and ended: the numbers that commands print."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestTiming:
    """One request; seconds count from its submission."""

    prompt_tokens: int
    submitted: float = field(default_factory=time.perf_counter)
    first_token_seconds: float | None = None
    total_seconds: float = 0.0
    tokens: int = 0

    def note(self, num_tokens: int) -> None:
        self.total_seconds = time.perf_counter() - self.submitted
        self.tokens += num_tokens
        if num_tokens and self.first_token_seconds is None:
            self.first_token_seconds = self.total_seconds


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens a second of a batch: prompts until every request has a first token, then the tokens after the first."""

    prefill: float
    decode: float | None

    @classmethod
    def of(cls, timings: list[RequestTiming]) -> Rates:
        firsts = [t.first_token_seconds for t in timings if t.first_token_seconds is not None]
        prefill_seconds = max(firsts, default=0.0)
        decode_seconds = max((t.total_seconds for t in timings), default=0.0) - min(firsts, default=0.0)
        later = sum(max(0, t.tokens - 1) for t in timings)
        prompt_tokens = sum(t.prompt_tokens for t in timings)
        return cls(
            prompt_tokens / prefill_seconds if prefill_seconds > 0 else 0.0,
            later / decode_seconds if later and decode_seconds > 0 else None,
        )

    def __str__(self) -> str:
        decode = "" if self.decode is None else f", decode {self.decode:.1f} tokens/s"
        return f"prefill {self.prefill:.1f} tokens/s{decode}"
