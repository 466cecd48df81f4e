"""`/openapi.json`, made of the records that requests are read into, and `/docs`, a page of it."""

from __future__ import annotations

import html
import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

_REF = "#/components/schemas/{name}"
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2430}
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}
td,th{text-align:left;padding:3px 12px 3px 0;border-top:1px solid #d9dee6;vertical-align:top}
code{font:13px ui-monospace,monospace}h2{font-size:17px;margin:2rem 0 0}p{margin:.2rem 0;color:#5d6878}"""


@dataclass(frozen=True, slots=True)
class Operation:
    """A path and what it is for; form: the record of its body. streams: whether it can answer as events."""

    method: str
    path: str
    summary: str
    form: type[msgspec.Struct] | None = None
    streams: bool = False


def openapi(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document. Fields that no record has are ignored, which is why every body may have more."""
    forms = [operation.form for operation in operations if operation.form is not None]
    _, components = msgspec.json.schema_components(forms, ref_template=_REF)
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tsrun", "version": importlib.metadata.version("tsc-llm")},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    found: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {
            "200": {"description": "The answer.", "content": content},
            "400": {"description": "A field that can not be as it is; the message names it."},
        },
    }
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    if names:
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    if operation.form is not None:
        schema = {"$ref": _REF.format(name=operation.form.__name__)}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def docs_page(operations: Sequence[Operation]) -> str:
    """Every path with the fields of its body."""
    document = openapi(operations)
    body = "".join(_section(operation, document) for operation in operations)
    head = f'<meta charset="utf-8"><title>tsrun API</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}<h1>tsrun API</h1>{body}</html>'


def _section(operation: Operation, document: dict[str, Any]) -> str:
    head = f"<h2><code>{operation.method} {html.escape(operation.path)}</code></h2><p>{html.escape(operation.summary)}</p>"
    if operation.form is None:
        return head
    schema = document["components"]["schemas"][operation.form.__name__]
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{name}</code></td><td>{html.escape(' or '.join(_kinds(field)))}{', required' if name in required else ''}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"{head}<table>{rows}</table>"


def _kinds(field: dict[str, Any]) -> Iterator[str]:
    """The types that a field may have, null aside, which is the same as leaving it out."""
    if "anyOf" in field:
        for one in field["anyOf"]:
            yield from _kinds(one)
    elif field.get("type") == "array":
        yield f"array of {' or '.join(_kinds(field['items'])) or 'anything'}" if field.get("items") else "array"
    elif field.get("type") != "null":
        yield str(field.get("type", "anything"))
