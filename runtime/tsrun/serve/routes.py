"""Every path of the server, in one table."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tsrun.serve.anthropic import CountTokens, MessagesAnswer, MessagesRequest, TokenCount
from tsrun.serve.bodies import parsed
from tsrun.serve.chat import ChatAnswer, ChatRequest
from tsrun.serve.completions import Completion, CompletionRequest
from tsrun.serve.endpoints import AnthropicDialect, Dialect, Generating, UnknownFields, read_body
from tsrun.serve.front import Front
from tsrun.serve.health import Health
from tsrun.serve.http_errors import HttpError, http_error
from tsrun.serve.metrics import CONTENT_TYPE, Metrics
from tsrun.serve.responses import KeptResponses, ResponseAnswer, ResponsesRequest
from tsrun.serve.tokenizing import Detokenize, Tokenize

OPENAI, ANTHROPIC = Dialect(), AnthropicDialect()


def application(front: Front, health: Health) -> Starlette:
    unknown = UnknownFields(front.metrics)
    kept = KeptResponses()

    def generating(form: Any, answer: Any, dialect: Dialect = OPENAI) -> Generating[Any]:
        return Generating(front, form, answer, dialect, unknown)

    def answered(form: Any) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            body, _ = parsed(await read_body(request.receive), form)
            return JSONResponse(body.answer(front))

        return endpoint

    return Starlette(
        routes=[
            Route("/v1/chat/completions", generating(ChatRequest, ChatAnswer), methods=["POST"]),
            Route("/v1/completions", generating(CompletionRequest, Completion), methods=["POST"]),
            Route("/v1/messages", generating(MessagesRequest, MessagesAnswer, ANTHROPIC), methods=["POST"]),
            Route("/v1/messages/count_tokens", generating(CountTokens, TokenCount, ANTHROPIC), methods=["POST"]),
            Route("/v1/responses", generating(ResponsesRequest, lambda front, body: ResponseAnswer(front, body, kept)), methods=["POST"]),
            Route("/v1/responses/{id}", _kept(kept), methods=["GET", "DELETE"]),
            Route("/v1/models", _models(front)),
            Route("/v1/models/{model:path}", _models(front)),
            Route("/tokenize", answered(Tokenize), methods=["POST"]),
            Route("/detokenize", answered(Detokenize), methods=["POST"]),
            *_probes(health, front.metrics),
        ],
        exception_handlers=_ERRORS,
    )


def probes(health: Health, metrics: Metrics) -> Starlette:
    """Of a worker, which has no API of its own."""
    return Starlette(routes=_probes(health, metrics), exception_handlers=_ERRORS)


def _probes(health: Health, metrics: Metrics) -> list[Route]:
    return [
        Route("/health", health.health),
        Route("/ready", health.ready),
        Route("/version", _version),
        Route("/metrics", _metrics(metrics)),
    ]


def _models(front: Front) -> Callable[[Request], Awaitable[Response]]:
    card = {
        "id": front.model,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "tsrun",
        "max_model_len": front.ready.max_context,
    }

    async def endpoint(request: Request) -> Response:
        if "model" not in request.path_params:
            return JSONResponse({"object": "list", "data": [card]})
        if request.path_params["model"] != front.model:
            raise HttpError(
                404, f"there is no model '{request.path_params['model']}'; this server has '{front.model}'", code="model_not_found"
            )
        return JSONResponse(card)

    return endpoint


def _metrics(metrics: Metrics) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    return endpoint


def _kept(kept: KeptResponses) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        identity, origin = request.path_params["id"], request.scope["state"]["origin"]
        if request.method == "DELETE":
            kept.delete(origin, identity)
            return JSONResponse({"id": identity, "object": "response", "deleted": True})
        return JSONResponse(kept.response(origin, identity))

    return endpoint


async def _version(request: Request) -> Response:
    return JSONResponse({"version": importlib.metadata.version("tsc-llm")})


async def _error(request: Request, error: Exception) -> Response:
    match error:
        case HTTPException():
            known = HttpError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        case _:
            known = http_error(error)
    return JSONResponse(known.openai(), known.status, headers=known.headers)


_ERRORS: dict[Any, Any] = {HttpError: _error, HTTPException: _error, Exception: _error}
