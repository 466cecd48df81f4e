"""What an answer must look like, from the fields of each API that say so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tsrun.constraint import Constraint
from tsrun.errors import RequestError
from tsrun.serve.conversation import Tool
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


def of_call(tools: Sequence[Tool], name: str | None) -> Constraint:
    """An answer that is one call, of the function of that name or of any: an object with its name and arguments."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["function"]["name"]}, "arguments": tool["function"]["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
        if name is None or tool["function"]["name"] == name
    ]
    return _constraint("json_schema", json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls}), "tools")


def _constraint(kind: Any, text: str, field: str) -> Constraint:
    try:
        return Constraint(kind, text)
    except RequestError as error:
        raise invalid(field, f"{field}: {error.what}; {error.mend}") from None
