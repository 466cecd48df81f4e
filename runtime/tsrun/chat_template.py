"""Renders a checkpoint's chat template: Jinja that came with the weights, so it runs in the immutable sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tsrun.errors import InputError, RequestError

Message = Mapping[str, Any]


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own spelling

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template with the globals and filters that templates of Hugging Face checkpoints expect."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise RequestError("chat template", f"line {error.lineno}: {error.message}", "mend it") from None
        except RecursionError:
            raise RequestError("chat template", "is nested too deeply", "mend it") from None

    def render(self, messages: Sequence[Message], tools: Sequence[Any] = (), variables: Mapping[str, Any] | None = None) -> str:
        """variables: that the template knows besides; they go before those that it is always given, but for the conversation."""
        given: dict[str, Any] = {**self._special_tokens, "documents": None, "add_generation_prompt": True, **(variables or {})}
        try:
            return self._template.render({**given, "messages": list(messages), "tools": list(tools) or None})
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RequestError("chat template", str(error) or type(error).__name__, "change the messages") from None


def read_chat_template(file: Path) -> str:
    """A file's template, which compiles. Raises InputError."""
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8"
        raise InputError(str(file), f"can not be read ({why})", "give a Jinja file to --chat-template") from None
    if not source.strip():
        raise InputError(str(file), "is empty", "give a Jinja file to --chat-template")
    try:
        ChatTemplate(source, {})
    except RequestError as error:
        raise InputError(str(file), error.what, "mend the template") from None
    return source


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja's own filter would escape HTML characters, which a model would then see."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
