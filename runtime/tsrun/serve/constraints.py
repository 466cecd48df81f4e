"""What an answer must look like, from the fields of each API that say so, and from the tools that it may or must call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tsrun.constraint import Constraint
from tsrun.errors import RequestError
from tsrun.lark import lark_of
from tsrun.parsing import Choice, Tool, Unwritable
from tsrun.serve.http_errors import HttpError, invalid


def only(*found: Constraint | None) -> Constraint | None:
    """The one that was asked for; HttpError where there are two."""
    asked = [one for one in found if one is not None]
    if len(asked) > 1:
        raise HttpError(
            400, f"the answer is constrained twice: by {asked[0].kind} and by {asked[1].kind}; leave one out", code="invalid_value"
        )
    return asked[0] if asked else None


def of_format(form: Any, field: str) -> Constraint | None:
    """Of chat completions' `response_format`, or of responses' `text.format`, where the schema is not within `json_schema`."""
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return Constraint("json_object")
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}} | {"type": "json_schema", "schema": dict(schema)}:
            return _constraint("json_schema", json.dumps(schema), field)
        case {"type": "structural_tag"}:
            return _constraint("structural_tag", json.dumps(form), field)
        case _:
            raise invalid(field, f"{field}: give {{'type': 'text'}}, 'json_object', or 'json_schema' with a `schema`")


def of_extensions(regex: str | None, grammar: str | None, choice: Sequence[str] | None) -> Constraint | None:
    """Of fields that OpenAI does not have."""
    return only(
        None if regex is None else _constraint("regex", regex, "regex"),
        None if grammar is None else _constraint("lark", grammar, "grammar"),
        None if choice is None else _constraint("choice", json.dumps(list(choice)), "choice"),
    )


def of_guided(fields: Mapping[str, Any] | None, field: str) -> Constraint | None:
    """Of vLLM's `structured_outputs`: an object with one of `json`, `json_object`, `regex`, `choice`, `grammar`."""
    if not fields:
        return None
    found = {name: value for name, value in fields.items() if value not in (None, False)}
    match found:
        case {"json": schema, **rest} if not rest:
            return _constraint("json_schema", schema if isinstance(schema, str) else json.dumps(schema), field)
        case {"json_object": True, **rest} if not rest:
            return Constraint("json_object")
        case {"regex": str(regex), **rest} if not rest:
            return _constraint("regex", regex, field)
        case {"grammar": str(grammar), **rest} if not rest:
            return _constraint("lark", grammar, field)
        case {"choice": list(choice), **rest} if not rest:
            return _constraint("choice", json.dumps(choice), field)
        case _:
            raise invalid(field, f"{field}: give one of `json`, `json_object`, `regex`, `choice`, `grammar`")


def whole(
    own: Constraint | None,
    choice: Choice,
    tools: Sequence[Tool],
    *,
    must_call: bool,
    starts_inside: bool,
    special_id: Callable[[str], int | None],
) -> Constraint | None:
    """Of the whole answer as the model writes it: what it may think first, then a call in its family's format, or what the request itself
    asks for. None where nothing is asked. HttpError where the format has no words for it."""
    if must_call and own is not None:
        raise invalid("tool_choice", f"the answer is constrained twice: by tool_choice and by {own.kind}; leave one out")
    called = tools if any(tool.strict for tool in tools) else ()
    if not called and (own is None or choice.reasoning is None):
        return own
    try:
        form = choice.form(called, must_call=must_call, has_form=own is not None, starts_inside=starts_inside)
    except Unwritable as error:
        raise HttpError(
            400,
            f"tools: the arguments can not be made to follow their schema, since a grammar can not say {error}",
            param="tools",
            code="unsupported_parameter",
        ) from None
    frame = lark_of(form, special_id)
    try:
        return Constraint("tools", frame) if own is None else replace(own, frame=frame)
    except RequestError as error:
        raise invalid("tools", f"tools: {error.what}; {error.mend}") from None


def _constraint(kind: Any, text: str, field: str) -> Constraint:
    try:
        return Constraint(kind, text)
    except RequestError as error:
        raise invalid(field, f"{field}: {error.what}; {error.mend}") from None
