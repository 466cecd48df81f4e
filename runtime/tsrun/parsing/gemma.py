"""FunctionGemma: `<start_function_call>call:f{x:<escape>text<escape>,n:1}<end_function_call>`; Gemma 4 the same with other tags."""

from __future__ import annotations

import re

from tsrun.parsing.grammar import Grammar, Tools, tagged
from tsrun.parsing.json_text import MAX_DEPTH, checked
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Malformed, Reader, Wait
from tsrun.parsing.typed import ArgumentWriter

FUNCTION_GEMMA_TAGS = ("<start_function_call>", "<end_function_call>", "<escape>")
GEMMA4_TAGS = ("<|tool_call>", "<tool_call|>", '<|"|>')
_BARE = re.compile(r"[-+.\w]+")
_BARE_LIMIT = 512


def function_gemma(tools: Tools) -> Grammar:
    """A name that is no tool's makes a call too."""
    return _gemma(*FUNCTION_GEMMA_TAGS)


def gemma4(tools: Tools) -> Grammar:
    """A name that is no tool's makes a call too."""
    return _gemma(*GEMMA4_TAGS)


def _gemma(begin: str, end: str, quote: str) -> Grammar:
    def call(reader: Reader, parts: Parts, tag: str) -> Wait[None]:
        yield from reader.space()
        yield from reader.expect("call:")
        name = yield from reader.name()
        yield from reader.space()
        yield from reader.expect("{")
        writer = ArgumentWriter(parts, name)
        yield from members(reader, writer)
        yield from reader.space()
        if (yield from reader.literal(end)):
            reader.claim()

    def members(reader: Reader, writer: ArgumentWriter) -> Wait[None]:
        """What follows an opening brace, with the closing one."""
        yield from reader.space()
        if not (yield from reader.literal("}")):
            while True:
                yield from reader.space()
                writer.key((yield from key(reader)))
                yield from reader.space()
                yield from reader.expect(":")
                yield from value(reader, writer)
                yield from reader.space()
                if (yield from reader.expect(",", "}")) == "}":
                    break
        writer.close()

    def elements(reader: Reader, writer: ArgumentWriter) -> Wait[None]:
        """What follows an opening bracket, with the closing one."""
        yield from reader.space()
        if not (yield from reader.literal("]")):
            while True:
                yield from value(reader, writer)
                yield from reader.space()
                if (yield from reader.expect(",", "]")) == "]":
                    break
        writer.close()

    def key(reader: Reader) -> Wait[str]:
        if not (yield from reader.literal(quote)):
            return (yield from reader.run(_KEY, _BARE_LIMIT))
        pieces: list[str] = []
        if (yield from reader.until((quote,), pieces.append)) is None:
            raise Malformed
        return "".join(pieces)

    def value(reader: Reader, writer: ArgumentWriter) -> Wait[None]:
        yield from reader.space()
        opening = yield from reader.literal(quote, "{", "[")
        if opening == quote:
            writer.begin_string()
            if (yield from reader.until((quote,), writer.string)) is None:
                raise Malformed
            writer.end_string()
        elif opening is None:
            number = checked((yield from reader.run(_BARE, _BARE_LIMIT)))
            if number is None or not (yield from reader.more()):
                raise Malformed
            writer.value(number)
        else:
            if writer.depth == MAX_DEPTH:
                raise Malformed
            writer.open(opening)
            yield from (members if opening == "{" else elements)(reader, writer)

    return tagged((begin,), call)


_KEY = re.compile(r"[^\s:{}\[\],<]+")
