"""What a request took, in the words of each API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Usage:
    """Tokens. cached: of the prompt, that were found in the prefix cache; reasoning: of the answer, before it began; miss: why a prompt
    whose beginning was known was not found; accepted: of the answer, that were drafted; rejected: drafted in vain."""

    prompt: int
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    miss: str | None = None
    accepted: int = 0
    rejected: int = 0

    def chat(self) -> dict[str, Any]:
        """Of completions and chat completions."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning,
                "accepted_prediction_tokens": self.accepted,
                "rejected_prediction_tokens": self.rejected,
            },
            **({} if self.miss is None else {"cache_miss_reason": self.miss}),
        }

    def responses(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.completion,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.prompt + self.completion,
            **({} if self.miss is None else {"cache_miss_reason": self.miss}),
        }

    def anthropic(self) -> dict[str, Any]:
        """Its `input_tokens` are those that were computed anew."""
        return {
            "input_tokens": self.prompt - self.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.cached,
            "output_tokens": self.completion,
            **({} if self.miss is None else {"cache_miss_reason": self.miss}),
        }

    def add(self, other: Usage) -> None:
        """Another answer to the same prompt."""
        self.completion += other.completion
        self.reasoning += other.reasoning
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.cached = max(self.cached, other.cached)
        self.miss = self.miss or other.miss
