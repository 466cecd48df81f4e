"""gpt-oss: messages `<|channel|>analysis<|message|>…<|end|>`, with a recipient `to=functions.f` for a call, after `<|start|>assistant`.

The text form of the tokens is read: the library `openai-harmony` reads ids, and downloads the vocabulary that it needs for that.
"""

from __future__ import annotations

import re

from tsrun.parsing.forms import Form, Free, Json, Maybe, Repeat, Tag, Until, one_of, series
from tsrun.parsing.grammar import Tool, Tools, attempt, json_arguments, tagged
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Malformed, Reader, Wait
from tsrun.parsing.writing import Writing, plain_name, schema_of

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_END, _RETURN, _CALL = _ENDS = ("<|end|>", "<|return|>", "<|call|>")
_TO = " to="  # at the start of an answer, since the prompt ended with `<|start|>assistant`
TAGS = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, *_ENDS)
_HEADER_TEXT = re.compile(r"[^<]+")
_HEADER_LIMIT = 1024
_RECIPIENT = re.compile(r"\bto=([\w.:/$-]{1,256})")
_CHANNEL_NAME = re.compile(r"<\|channel\|>(\w{1,32})")


def harmony(reader: Reader, parts: Parts) -> Wait[None]:
    """Messages on the channel `analysis` are reasoning, others content; messages of the same kind are an empty line apart.

    One with a recipient is a call if its body is an object, also of a name that is no tool's. A header that the end cuts off is dropped.
    """
    seen: set[bool] = set()  # whether messages were reasoning

    def messages(reader: Reader, parts: Parts, tag: str | None) -> Wait[None]:
        while tag is not None and tag not in _ENDS:
            header = yield from _header(reader, tag)
            if recipient := _RECIPIENT.search(header):
                name = recipient[1].removeprefix("functions.") or recipient[1]
                yield from json_arguments(reader, parts, name, None, *_ENDS)
                return
            channel = _CHANNEL_NAME.search(header)
            is_reasoning = channel is not None and channel[1] == "analysis"
            write = parts.reasoning if is_reasoning else parts.content
            write("\n\n" if is_reasoning in seen else "")
            seen.add(is_reasoning)
            tag = yield from reader.until((*_ENDS, _START, _CHANNEL), write)
        reader.claim()

    if (yield from reader.literal(_TO)):
        yield from attempt(reader, parts, messages(reader, parts, _TO))
    yield from tagged((_START, _CHANNEL), messages)(reader, parts)


def _header(reader: Reader, tag: str) -> Wait[str]:
    """Read what follows a tag, to the message."""
    pieces = [tag]
    left = _HEADER_LIMIT
    while (found := (yield from reader.literal(_CHANNEL, _CONSTRAIN, _MESSAGE))) != _MESSAGE:
        if not (yield from reader.more()):
            reader.claim()
            raise Malformed
        pieces.append(found or (yield from reader.run(_HEADER_TEXT, left)))
        left -= len(pieces[-1])
        if left < 0 or not pieces[-1]:
            raise Malformed
    return "".join(pieces)


def _call(tools: Tools) -> Form:
    """Messages of reasoning, then the one that calls. The prompt ended with `<|start|>assistant`, and what ends a call ends the answer."""
    return series(Repeat(_message("analysis")), one_of(*map(_written, tools)))


def _answer(tools: Tools, content: Form | None, without: tuple[str, ...]) -> Form:
    """As `_call`, where a message to the user may stand before the call, or instead of it the final one."""
    final = series(Tag(_CHANNEL), "final", Tag(_MESSAGE), content or Free(TAGS))
    return series(Repeat(one_of(_message("analysis"), _message("commentary"))), one_of(final, *map(_written, tools)))


def _message(channel: str) -> Form:
    others = tuple(tag for tag in TAGS if tag != _END)
    return series(Tag(_CHANNEL), channel, Tag(_MESSAGE), Until(_END, without=others), Tag(_START), "assistant")


def _written(tool: Tool) -> Form:
    to = f" to=functions.{plain_name(tool.name)}"
    header = one_of(series(Tag(_CHANNEL), f"commentary{to}"), series(to, Tag(_CHANNEL), "commentary"))
    return series(header, Maybe(series(" ", Tag(_CONSTRAIN), "json")), Tag(_MESSAGE), Json(schema_of(tool)))


WRITING = Writing(_call, _answer)
