"""The fields that say how tokens are chosen and when to stop, which OpenAI's completions and chat completions share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tsrun.constraint import Constraint
from tsrun.errors import RequestError
from tsrun.sampler import Sampling
from tsrun.serve import constraints
from tsrun.serve.http_errors import HttpError, invalid

MOST_STOPS = 16
MOST_CHOICES = 128
MOST_PRIORITY = 7
MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """What the fields of any API come to."""

    sampling: Sampling
    stops: tuple[str, ...] = ()
    num_choices: int = 1
    ignore_eos: bool = False
    priority: int = 0
    deadline_seconds: float | None = None
    cache_salt: str | None = None
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    min_tokens: int = 0


class SamplingFields(msgspec.Struct, kw_only=True):
    """temperature and top_p have OpenAI's defaults; top_k, min_p, repetition_penalty, ignore_eos, min_tokens, priority, cache_salt,
    session_id and deadline_seconds are ours and vLLM's."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: int | None = None
    user: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    prompt_cache_key: str | None = None
    session_id: str | None = None
    deadline_seconds: float | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    prompt_logprobs: int | None = None
    response_format: Any = None
    regex: str | None = None
    grammar: str | None = None
    choice: list[str] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    def token_choice(self, *, logprobs: int | None = None) -> TokenChoice:
        """Raises HttpError where a field has no meaning."""
        check_queueing(self.priority, self.deadline_seconds)
        if self.min_tokens is not None and self.min_tokens < 0:
            raise invalid("min_tokens", f"min_tokens: got {self.min_tokens}; give a count, 0 being off")
        if self.n is not None and not 1 <= self.n <= MOST_CHOICES:
            raise invalid("n", f"n: got {self.n}; give 1 to {MOST_CHOICES}")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MOST_STOPS or "" in stops:
            raise invalid("stop", f"stop: give at most {MOST_STOPS} texts, none of them empty")
        for name, count in (("top_logprobs", logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None and not 0 <= count <= MOST_LOGPROBS:
                raise invalid(name, f"{name}: got {count}; give 0 to {MOST_LOGPROBS}")
        return TokenChoice(
            sampling=self._sampling(),
            stops=tuple(stops),
            num_choices=self.n or 1,
            ignore_eos=bool(self.ignore_eos),
            priority=self.priority or 0,
            deadline_seconds=self.deadline_seconds,
            cache_salt=self.cache_salt,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            constraint=self._constraint(),
            min_tokens=self.min_tokens or 0,
        )

    def _constraint(self) -> Constraint | None:
        guided = {"json": self.guided_json, "regex": self.guided_regex, "choice": self.guided_choice, "grammar": self.guided_grammar}
        return constraints.only(
            constraints.of_format(self.response_format, "response_format"),
            constraints.of_extensions(self.regex, self.grammar, self.choice),
            constraints.of_guided(self.structured_outputs, "structured_outputs"),
            constraints.of_guided({name: value for name, value in guided.items() if value is not None}, "guided_json"),
        )

    def _sampling(self) -> Sampling:
        try:
            return Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_k=max(self.top_k or 0, 0),  # -1 is off, too
                top_p=1.0 if self.top_p is None else self.top_p,
                min_p=self.min_p or 0.0,
                seed=None if self.seed is None else self.seed % 2**64,
                logit_bias=_biases(self.logit_bias or {}),
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            )
        except RequestError as error:
            field = error.where.replace("-", "_")
            raise invalid(field, f"{field}: {error.what}; {error.mend}") from None

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.get("include_usage"))


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise invalid("logit_bias", "logit_bias: give ids of tokens") from None


def check_queueing(priority: int | None, deadline_seconds: float | None) -> None:
    """Raise HttpError where one of them has no meaning."""
    if priority is not None and not 0 <= priority <= MOST_PRIORITY:
        raise invalid("priority", f"priority: got {priority}; give 0 (first) to {MOST_PRIORITY}")
    if deadline_seconds is not None and not (math.isfinite(deadline_seconds) and deadline_seconds > 0):
        raise invalid("deadline_seconds", f"deadline_seconds: got {deadline_seconds}; give a positive number")


def check_count(field: str, value: int | None) -> None:
    """Raise HttpError where a count of tokens is none."""
    if value is not None and value < 1:
        raise HttpError(400, f"{field}: got {value}; give a positive count", param=field, code="invalid_value")
