"""Log probabilities in the form of each API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tsrun.generation import TokenLogprobs
from tsrun.serve.front import Front


def chat_logprobs(front: Front, tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """Of chat completions."""
    content = [
        {**_entry(front, one.token, one.logprob), "top_logprobs": [_entry(front, token, logprob) for token, logprob in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(front: Front, first: int | None, tokens: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
    """Of completions. first: the first token of a prompt, of which nothing is known; offset: of the tokens in the text, in characters."""
    unknown = [] if first is None else [None]
    texts = [front.token_text(token) for token in (*([] if first is None else [first]), *(one.token for one in tokens))]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [*unknown, *(one.logprob for one in tokens)],
        "top_logprobs": [*unknown, *(_top(front, one) for one in tokens)],
        "text_offset": offsets,
    }


def prompt_logprobs(front: Front, tokens: Sequence[TokenLogprobs]) -> list[Any]:
    """Of the tokens of a prompt, in vLLM's form: by id, with ranks; the first has none."""
    return [None, *(_ranked(front, one) for one in tokens)]


def _ranked(front: Front, one: TokenLogprobs) -> dict[str, Any]:
    found = {
        str(token): {"logprob": logprob, "rank": rank, "decoded_token": front.token_text(token)}
        for rank, (token, logprob) in enumerate(one.top, 1)
    }
    own = {"logprob": one.logprob, "rank": None, "decoded_token": front.token_text(one.token)}
    return {str(one.token): own, **found}


def _top(front: Front, one: TokenLogprobs) -> dict[str, float]:
    """The likeliest, and the token itself."""
    return {**{front.token_text(token): logprob for token, logprob in reversed(one.top)}, front.token_text(one.token): one.logprob}


def _entry(front: Front, token: int, logprob: float) -> dict[str, Any]:
    return {"token": front.token_text(token), "logprob": logprob, "bytes": list(front.token_bytes(token))}
