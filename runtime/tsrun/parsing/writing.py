"""How formats write calls: the other direction of their grammars, for models that are made to write them so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tsrun.parsing.forms import Form, Free, Json, Maybe, Repeat, Tag, Until, Unwritable, one_of, series
from tsrun.parsing.grammar import Tool, Tools
from tsrun.parsing.parts import dump
from tsrun.parsing.reader import NAME, NAME_LIMIT


@dataclass(frozen=True, slots=True)
class Writing:
    """The forms of a format's answers. Both raise Unwritable where it can not hold what a tool asks for.

    call: an answer that is one call of one of the tools, and nothing else. answer: one that may call them, given what it is where it
    calls none (None: text, among which calls stand), and tags that this text must not spell.
    """

    call: Callable[[Tools], Form]
    answer: Callable[[Tools, Form | None, tuple[str, ...]], Form]


def among_text(begin: str, body: Callable[[Tools, bool], Form], *others: str) -> Writing:
    """Calls that begin with a tag. body: what follows it, of one call if it is to be one; others: tags that are read as a beginning too."""

    def call(tools: Tools) -> Form:
        return series(Tag(begin), body(tools, True))

    def answer(tools: Tools, content: Form | None, without: tuple[str, ...]) -> Form:
        calls = body(tools, False)
        if content is not None:
            section = series(Tag(begin), calls)
            return one_of(series(section, Repeat(series(Maybe("\n"), section))), content)
        return series(Repeat(series(Until(begin, without=(*others, *without)), calls)), Free((begin, *others, *without)))

    return Writing(call, answer)


def calls_of(tools: Tools, call: Callable[[Tool], Form], between: Form, *, single: bool) -> Form:
    """Calls of any of the tools."""
    one = one_of(*(call(tool) for tool in tools))
    return one if single else series(one, Repeat(series(between, one)))


def json_call(tool: Tool, arguments: str = "arguments") -> Form:
    """An object with the name and the arguments, as `grammar.json_call` reads it."""
    return series(f'{{"name": {dump(tool.name)}, "{arguments}": ', Json(schema_of(tool)), "}")


def schema_of(tool: Tool) -> Mapping[str, Any]:
    """Of arguments, which are an object in any case. Those of a tool that is not strict are free."""
    if tool.parameters.get("type", "object") != "object":
        raise Unwritable(f"arguments of `{tool.name}` that are no object")
    return {**tool.parameters, "type": "object"} if tool.strict else {"type": "object"}


def plain_name(name: str) -> str:
    """A name as `Reader.name` reads it."""
    if not NAME.fullmatch(name) or len(name) > NAME_LIMIT:
        raise Unwritable(f"the name {name!r}")
    return name
