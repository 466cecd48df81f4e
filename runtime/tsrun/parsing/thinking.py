"""Reasoning that stands between tags before the answer."""

from __future__ import annotations

from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait


def think(reader: Reader, parts: Parts, open: str, close: str, *, starts_inside: bool) -> Wait[None]:
    """Read the reasoning at the start of an answer, and stop before the answer.

    `starts_inside`: the prompt ended within the reasoning; an opening tag may come all the same. Otherwise text that does not begin with
    the opening tag has no reasoning. Calls within the reasoning are text.
    """
    yield from reader.space()
    begun = yield from reader.literal(open)
    if begun is None and not starts_inside:
        parts.settle()
        return
    parts.reasoning("" if begun else reader.unclaimed())
    yield from reader.until((close,), parts.reasoning)
    reader.claim()
