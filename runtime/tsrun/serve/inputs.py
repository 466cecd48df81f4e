"""A field that is a text, its tokens, or several of either, as OpenAI's completions and embeddings have it."""

from __future__ import annotations

from typing import Any, Literal

from tsrun.serve.front import Front, Prompt
from tsrun.serve.http_errors import HttpError, invalid


def several(given: Any, field: str, most: int) -> list[str | list[int]]:
    """What is given, one by one. Raises HttpError."""
    found = [given] if isinstance(given, str) or _is_ids(given) else given
    if not isinstance(found, list) or not found or len(found) > most:
        raise invalid(field, f"{field}: give a text, an array of tokens, or an array of at most {most} of these")
    if not all(isinstance(one, str) or _is_ids(one) for one in found):
        raise invalid(field, f"{field}: give a text, an array of tokens, or an array of these")
    return found


async def prompts(front: Front, given: list[str | list[int]], field: Literal["prompt", "input"]) -> list[Prompt]:
    """Each as tokens that begin a sequence. Raises HttpError."""
    for one in given:
        if not isinstance(one, str) and any(not 0 <= index < front.vocabulary for index in one):
            raise HttpError(400, f"{field}: a token is outside of the vocabulary of {front.vocabulary}", param=field)
    texts = iter(await front.encoded([one for one in given if isinstance(one, str)], field))
    return [next(texts) if isinstance(one, str) else Prompt(one) for one in given]


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value) and bool(value)
