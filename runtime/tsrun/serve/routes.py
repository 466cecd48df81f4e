"""Every path of the server, in one table."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from tsrun.serve.anthropic import CountTokens, MessagesAnswer, MessagesRequest, TokenCount
from tsrun.serve.bodies import parsed
from tsrun.serve.chat import ChatAnswer, ChatRequest
from tsrun.serve.completions import Completion, CompletionRequest
from tsrun.serve.embeddings import Embeddings, EmbeddingsRequest
from tsrun.serve.endpoints import AnthropicDialect, Dialect, Generating, UnknownFields, read_body
from tsrun.serve.front import Front
from tsrun.serve.health import Health
from tsrun.serve.http_errors import HttpError, http_error
from tsrun.serve.metrics import CONTENT_TYPE, Metrics
from tsrun.serve.openapi import Operation, docs_page, openapi
from tsrun.serve.responses import ResponseAnswer, ResponsesRequest
from tsrun.serve.shared_state import DeleteResponse, FindResponse
from tsrun.serve.status import Status, page
from tsrun.serve.tokenizing import Detokenize, Tokenize

OPENAI, ANTHROPIC = Dialect(), AnthropicDialect()


def application(front: Front, health: Health) -> Starlette:
    unknown = UnknownFields(front.metrics)
    status = Status(front)

    def generating(
        form: Any, answer: Any, operation: str | None, dialect: Dialect = OPENAI, *, embeds: bool | None = False
    ) -> Generating[Any]:
        return Generating(front, form, answer, dialect, unknown, operation, embeds)

    def answered(form: Any) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            body, _ = await parsed(await read_body(request.receive), form)
            return JSONResponse(await body.answer(front))

        return endpoint

    chat, text, response = (
        _posted(ChatRequest, streams=True),
        _posted(CompletionRequest, streams=True),
        _posted(ResponsesRequest, streams=True),
    )
    table: list[tuple[Operation, Any]] = [
        (chat("/v1/chat/completions", "Answer a conversation: OpenAI's form."), generating(ChatRequest, ChatAnswer, "chat")),
        (text("/v1/completions", "Continue a text: OpenAI's older form."), generating(CompletionRequest, Completion, "text_completion")),
        (
            response("/v1/responses", "Answer items: OpenAI's newer form, kept for the next turn."),
            generating(ResponsesRequest, ResponseAnswer, "chat"),
        ),
        (Operation("GET", "/v1/responses/{id}", "A response that was kept."), _kept(front)),
        (Operation("DELETE", "/v1/responses/{id}", "Forget a response."), _kept(front)),
        (
            _posted(MessagesRequest, streams=True)("/v1/messages", "Answer messages: Anthropic's form."),
            generating(MessagesRequest, MessagesAnswer, "chat", ANTHROPIC),
        ),
        (
            _posted(CountTokens)("/v1/messages/count_tokens", "How many tokens messages are."),
            generating(CountTokens, TokenCount, None, ANTHROPIC, embeds=None),
        ),
        (
            _posted(EmbeddingsRequest)("/v1/embeddings", "Texts as vectors, of a model that gives them: OpenAI's form."),
            generating(EmbeddingsRequest, Embeddings, "embeddings", embeds=True),
        ),
        (Operation("GET", "/v1/models", "The model that is served."), _models(front)),
        (Operation("GET", "/v1/models/{model}", "The same, by its name."), _models(front)),
        (_posted(Tokenize)("/tokenize", "A text or messages as tokens."), answered(Tokenize)),
        (_posted(Detokenize)("/detokenize", "Tokens as a text."), answered(Detokenize)),
        (Operation("GET", "/health", "Whether tokens are being made; needs no key."), health.health),
        (Operation("GET", "/ready", "Whether new requests are taken; needs no key."), health.ready),
        (Operation("GET", "/status", "The engine at a glance."), status.status),
        (Operation("GET", "/metrics", "For Prometheus."), _metrics(front.metrics)),
        (Operation("GET", "/version", "The version of tsrun."), _version),
    ]
    operations = [operation for operation, _ in table]
    routes = [
        *(Route(operation.path.replace("{model}", "{model:path}"), endpoint, methods=[operation.method]) for operation, endpoint in table),
        Route("/openapi.json", _document(operations)),
        Route("/docs", _docs(operations)),
        Route("/", page()),
    ]
    return Starlette(routes=routes, exception_handlers=_ERRORS)


def _posted(form: type[msgspec.Struct], *, streams: bool = False) -> Callable[[str, str], Operation]:
    return lambda path, summary: Operation("POST", path, summary, form, streams)


def _document(operations: Sequence[Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return JSONResponse(openapi(operations))

    return endpoint


def _docs(operations: Sequence[Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return HTMLResponse(docs_page(operations))

    return endpoint


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


def _kept(front: Front) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        identity, origin = request.path_params["id"], request.scope["state"]["origin"]
        if request.method == "DELETE":
            await front.state.ask(DeleteResponse(origin.user, identity))
            return JSONResponse({"id": identity, "object": "response", "deleted": True})
        kept = await front.state.ask(FindResponse(origin.user, identity))
        return Response(kept.response, media_type="application/json")

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
