"""What a gateway's `GenerateRequest` asks of the engine. What is asked for and not done is refused by its name, never left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsrun.constraint import Constraint, ConstraintKind
from tsrun.errors import RequestError
from tsrun.generation import GenerationRequest, siblings
from tsrun.sampler import Sampling

_CONSTRAINTS: dict[str, ConstraintKind] = {
    "regex": "regex",
    "json_schema": "json_schema",
    "ebnf_grammar": "gbnf",
    "structural_tag": "structural_tag",
}
_NOT_DONE = {
    "mm_inputs": "the model reads text alone",
    "encode_bootstrap_info": "prompts are not encoded elsewhere",
    "kv_bootstrap_info": "prompts are computed where answers are",
    "data_parallel_rank": "the scheduler picks the group of ranks",
}
"""Fields of a request that may be there or not."""


def requests_of(asked: Any) -> list[GenerationRequest]:
    """One request for each answer. RequestError where a field has no meaning, or is not done."""
    _check(asked)
    fields = asked.sampling_params
    kind = fields.WhichOneof("constraint")
    more = _custom(fields.custom_params)
    request = GenerationRequest(
        prompt=list(asked.tokenized.input_ids),
        max_tokens=fields.max_new_tokens if fields.HasField("max_new_tokens") else None,
        sampling=_sampling(fields),
        stop=tuple(fields.stop),
        ignore_eos=fields.ignore_eos,
        stop_token_ids=tuple(fields.stop_token_ids),
        min_tokens=fields.min_new_tokens,
        logprobs=asked.top_logprobs_num if asked.return_logprob else None,
        constraint=None if kind is None else Constraint(_CONSTRAINTS[kind], getattr(fields, kind)),
        **more,
    )
    return siblings(request, fields.n or 1)


def _check(asked: Any) -> None:
    for name, why in _NOT_DONE.items():
        if asked.HasField(name):
            raise RequestError(name, why, "leave it out")
    if asked.HasField("logprob_start_len") and 0 <= asked.logprob_start_len < len(asked.tokenized.input_ids):
        raise RequestError("logprob_start_len", "the protocol has no place for the log probabilities of a prompt", "give -1")
    if asked.token_ids_logprob:
        raise RequestError("token_ids_logprob", "log probabilities are of the likeliest tokens", "give top_logprobs_num")


def _sampling(fields: Any) -> Sampling:
    """Unset fields are as in OpenAI's API."""

    def given(name: str, default: float) -> Any:
        return getattr(fields, name) if fields.HasField(name) else default

    return Sampling(
        temperature=given("temperature", 1.0),
        top_k=max(given("top_k", 0), 0),  # -1 is off, too
        top_p=given("top_p", 1.0),
        min_p=given("min_p", 0.0),
        seed=fields.sampling_seed if fields.HasField("sampling_seed") else None,
        logit_bias=_biases(fields.logit_bias),
        presence_penalty=given("presence_penalty", 0.0),
        frequency_penalty=given("frequency_penalty", 0.0),
        repetition_penalty=given("repetition_penalty", 1.0),
    )


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise RequestError("logit_bias", "a key is not the id of a token", "give ids") from None


def _custom(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of `custom_params` what the engine has and the protocol has not."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        match name, value:
            case "priority", float() if value in range(8):
                found[name] = int(value)
            case "deadline_seconds", float():
                found[name] = value
            case "cache_salt", str():
                found[name] = value
            case _:
                raise RequestError(f"custom_params.{name}", f"got {value!r}", "give a priority from 0 to 7, deadline_seconds or cache_salt")
    return found
