"""What the server's processes say: one line an event on the standard error, as text for people or as JSON. No prompt, no answer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, assert_never

import msgspec

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class LogOptions(msgspec.Struct, frozen=True):
    """format: None is text on a terminal, and JSON elsewhere."""

    format: LogFormat | None = None
    level: LogLevel = "info"

    @property
    def shown_as(self) -> LogFormat:
        return self.format or ("text" if sys.stderr.isatty() else "json")


def configure(options: LogOptions) -> None:
    """Send the events of this process to its standard error; of other packages only what they warn of."""
    handler = logging.StreamHandler()
    match options.shown_as:
        case "text":
            handler.setFormatter(TextLines())
        case "json":
            handler.setFormatter(JsonLines())
        case _ as never:
            assert_never(never)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tsrun").setLevel(options.level.upper())
    logging.captureWarnings(True)


def fields(details: str | None = None, **values: Any) -> dict[str, Any]:
    """What an event has beside its words, as `extra` of a call of `logging`; None is left out. details: several lines, which stand last."""
    return {"values": {name: value for name, value in values.items() if value is not None}, "details": details}


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"ts": _time(record), "level": record.levelname.lower(), "event": record.getMessage(), **_values(record)}
        details = _details(self, record)
        return _json(line | ({"details": details} if details else {}))


class TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values = "".join(f" {name}={_word(value)}" for name, value in _values(record).items())
        details = _details(self, record)
        lines = "".join(f"\n    {line}" for line in details.splitlines())
        return f"{_time(record)} {record.levelname.lower():7} {record.getMessage()}{values}{lines}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _values(record: logging.LogRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(record, "values", {})
    return found


def _details(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    said: str | None = getattr(record, "details", None)
    parts = [said or "", formatter.formatException(record.exc_info) if record.exc_info else ""]
    return "\n".join(part for part in parts if part)


def _word(value: Any) -> str:
    """One that can be told from what stands beside it."""
    is_plain = isinstance(value, str) and value and not any(c.isspace() or c == '"' for c in value)
    return str(value) if is_plain else _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode(errors="replace")
