"""`tsrun launch`: starts a coding agent's own command, told by its environment and arguments to use a running server."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import click

from tsrun.errors import MachineError, RequestError, UsageError

_TIMEOUT_SECONDS = 10
_MOST_ANSWER = 32_000
"""Tokens of one answer, where a client wants to know how many there may be; less where the context is short."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and the model that it has. key: what is sent for an API key, which a server that asks for none does not read; context: in
    tokens."""

    url: str
    key: str
    model: str
    context: int

    @property
    def most_answer(self) -> int:
        return min(_MOST_ANSWER, self.context // 4)


@dataclass(frozen=True, slots=True)
class Launch:
    """What is run: a command, what is put before the user's arguments, and the variables that are set for it."""

    program: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def _claude(server: Endpoint) -> Launch:
    models = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{name}_MODEL" for name in ("HAIKU", "SONNET", "OPUS")))
    environment = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": server.key,
        **dict.fromkeys(models, server.model),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(server.most_answer),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # it differs between builds, and each would compute the system prompt anew
    }
    return Launch("claude", (), environment)


def _codex(server: Endpoint) -> Launch:
    settings = {
        "model": server.model,
        "model_provider": "tsrun",
        "model_context_window": server.context,
        "model_providers.tsrun.name": "tsrun",
        "model_providers.tsrun.base_url": f"{server.url}/v1",
        "model_providers.tsrun.wire_api": "responses",
        "model_providers.tsrun.env_key": "TSRUN_API_KEY",
    }
    arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={json.dumps(value)}")]
    return Launch("codex", arguments, {"TSRUN_API_KEY": server.key})


def _opencode(server: Endpoint) -> Launch:
    model = {"name": server.model, "limit": {"context": server.context, "output": server.most_answer}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "tsrun",
        "options": {"baseURL": f"{server.url}/v1", "apiKey": server.key},
        "models": {server.model: model},
    }
    name = f"tsrun/{server.model}"
    config = {"model": name, "small_model": name, "provider": {"tsrun": provider}}
    return Launch("opencode", (), {"OPENCODE_CONFIG_CONTENT": json.dumps(config)})


def _qwen(server: Endpoint) -> Launch:
    environment = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": server.key, "OPENAI_MODEL": server.model}
    return Launch("qwen", ("--auth-type", "openai", "--model", server.model), environment)


CLIENTS: dict[str, tuple[Callable[[Endpoint], Launch], str]] = {
    "claude": (_claude, "@anthropic-ai/claude-code"),
    "codex": (_codex, "@openai/codex"),
    "opencode": (_opencode, "opencode-ai"),
    "qwen": (_qwen, "@qwen-code/qwen-code"),
}
"""By name: how it is told of a server, and the package of npm that it comes with."""


def find_endpoint(url: str, key: str | None) -> Endpoint:
    """Ask a server for its model. UsageError where the URL is none, MachineError where nobody answers, RequestError where it refuses."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError("--url", f"'{url}' is no address of a server", "give one such as http://127.0.0.1:8000")
    url = url.rstrip("/").removesuffix("/v1")
    key = key or "none"
    request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            card: dict[str, Any] = json.load(answer)["data"][0]
            return Endpoint(url, key, str(card["id"]), int(card["max_model_len"]))
    except urllib.error.HTTPError as error:
        with error:
            mend = "give its --api-key" if error.code == 401 else "see what it says"
            raise RequestError(url, f"refuses to say which model it has (status {error.code})", mend) from None
    except OSError as error:
        raise MachineError(
            url, f"no server answers ({getattr(error, 'reason', error)})", "start `tsrun serve`, or give its --url"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise RequestError(url, "does not answer as `tsrun serve` does", "give the URL of one") from None


def launch(client: str, url: str, key: str | None, arguments: Sequence[str], *, only_print: bool) -> None:
    """Become the client's process; or print, as a line for a shell, what would be run."""
    settings, package = CLIENTS[client]
    found = settings(find_endpoint(url, key))
    command = [found.program, *found.arguments, *arguments]
    if only_print:
        variables = [f"{name}={shlex.quote(value)}" for name, value in found.environment.items()]
        click.echo(" ".join([*variables, shlex.join(command)]))
        return
    if shutil.which(found.program) is None:
        raise MachineError(found.program, "is not installed", f"npm install --global {package}")
    os.execvpe(found.program, command, os.environ | found.environment)
