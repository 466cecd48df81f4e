"""Reads the body of a request into a typed record. What a record has no field for is passed over: agents send more than any API lists."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from typing import Any, TypeVar

import msgspec

from tsrun.serve.http_errors import HttpError

Body = TypeVar("Body", bound=msgspec.Struct)

MOST_BYTES = 32 * 2**20
_LONG = 256 * 2**10
"""Bytes that are read in a thread."""
_FIELD = re.compile(r" - at `\$\.?([^`]*)`$")


async def parsed(data: bytes, form: type[Body]) -> tuple[Body, list[str]]:
    """The record, and the names of the fields that it does not have. Raises HttpError 400."""
    return _parsed(data, form) if len(data) < _LONG else await asyncio.to_thread(_parsed, data, form)


def _parsed(data: bytes, form: type[Body]) -> tuple[Body, list[str]]:
    try:
        values = msgspec.json.decode(data)
        if not isinstance(values, dict):
            raise HttpError(400, f"the body is {_kind(values)}, not a JSON object")
        return msgspec.convert(values, form), [name for name in values if name not in _names(form)]
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        field = found[1] if found else None
        message = str(error)[: found.start()] if found else str(error)
        raise HttpError(400, f"{field}: {message}" if field else message, param=field, code="invalid_type") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON ({error})"
        raise HttpError(400, f"the body {what}", code="invalid_json") from None


@cache
def _names(form: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(form))


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
