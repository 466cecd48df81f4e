"""What an API answers when it does not do what was asked: a status, a message, and the form that its clients expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, assert_never

from tsrun.errors import MachineError, RequestError
from tsrun.generation import Blame

_OPENAI_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Mapping[int, str] = {**_OPENAI_TYPES, 413: "request_too_large", 503: "overloaded_error", 529: "overloaded_error"}


ContextParts = Literal["messages", "prompt", "input"]
"""What is too long for the context."""


class HttpError(Exception):
    """param: the field at fault; code: OpenAI's name for the error, which clients look at; retry_after: seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        more_headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after
        self.more_headers = more_headers or {}

    @property
    def headers(self) -> dict[str, str]:
        again = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**again, **self.more_headers}

    @property
    def kind(self) -> str:
        """Without a word of the request."""
        return self.code or _OPENAI_TYPES.get(self.status, "server_error")

    def openai(self) -> dict[str, Any]:
        kind = _OPENAI_TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self, request_id: str) -> dict[str, Any]:
        kind = _ANTHROPIC_TYPES.get(self.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id}


def unsupported(field: str, why: str) -> HttpError:
    """A known field that would change the answer, and that is not done."""
    return HttpError(400, f"`{field}` is not supported: {why}", param=field, code="unsupported_parameter")


def invalid(field: str, message: str) -> HttpError:
    return HttpError(400, message, param=field, code="invalid_value")


def context_exceeded(max_context: int, num_tokens: int, parts: ContextParts) -> HttpError:
    """In OpenAI's own words, which agents look for and show."""
    message = (
        f"This model's maximum context length is {max_context} tokens. However, your {parts} resulted in {num_tokens} tokens. "
        f"Please reduce the length of the {parts}."
    )
    return HttpError(400, message, param=parts, code="context_length_exceeded")


def at_fault(blame: Blame, line: str) -> HttpError:
    """Of an answer that could not go on."""
    match blame:
        case "request":
            return HttpError(400, line)
        case "model":
            return HttpError(500, line)
        case "engine":
            return HttpError(503, line, retry_after=5)
    assert_never(blame)


def http_error(error: Exception) -> HttpError:
    """Of an error of the engine or of a template."""
    match error:
        case HttpError():
            return error
        case RequestError():
            return HttpError(400, str(error), param=error.where or None)
        case OverflowError():
            return HttpError(400, "a number has too many digits", code="invalid_value")
        case UnicodeEncodeError():
            return HttpError(400, "the text holds half of a surrogate pair", code="invalid_value")
        case MachineError():
            return HttpError(503, str(error), retry_after=5)
        case _:
            return HttpError(500, f"internal error: {type(error).__name__}")
