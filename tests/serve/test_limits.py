"""How much a key may use and a client may fill."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serve.conftest import Server, start
from tests.serve.test_http import chat, eventually

from tsrun.serve.http_errors import HttpError
from tsrun.serve.kept_responses import ENTRY_BYTES, KeptResponse, KeptResponses
from tsrun.serve.token_limits import TokenLimits, TokensLeft

LIMIT = 3000  # a minute: 50 a second
CLEF = "clé-à"
KEYS = ("a", "b", CLEF)


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def limited(model: Path) -> Iterator[Server]:
    running = start(model, *(part for key in KEYS for part in ("--api-key", key)), "--max-tokens-per-minute-per-key", str(LIMIT))
    yield running
    assert running.stop() == 0


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def remaining(answer: Any) -> int:
    return int(answer.headers["x-ratelimit-remaining-tokens"])


def test_a_bucket_fills_again_as_the_minute_goes_by() -> None:
    clock = Clock()
    limits = TokenLimits(600, clock)
    assert limits.take(1, 600) == TokensLeft(600, 0, 60.0)
    with pytest.raises(HttpError) as refused:
        limits.take(1, 25)
    assert refused.value.headers == {
        "retry-after": "3",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m0s",
    }
    assert limits.take(2, 1).remaining == 599, "of another key"
    clock.now += 2.4
    with pytest.raises(HttpError):
        limits.take(1, 25)
    clock.now += 0.6
    assert limits.take(1, 25).remaining == 5
    clock.now += 1000
    assert limits.take(1, 0).remaining == 600


def test_what_was_not_used_is_given_back() -> None:
    clock = Clock()
    limits = TokenLimits(600, clock)
    limits.take(1, 500)
    limits.settle(1, 500, 100)
    assert limits.take(1, 0).remaining == 500
    limits.settle(1, 0, 800)
    with pytest.raises(HttpError) as refused:
        limits.take(1, 0)
    assert (refused.value.retry_after, refused.value.headers["x-ratelimit-reset-tokens"]) == (30, "1m30s"), "a debt"
    limits.settle(1, 10_000, 0)
    assert limits.take(1, 0).remaining == 600, "never more than a minute's"


def test_a_request_of_more_than_a_minutes_tokens_waits_for_all_of_them() -> None:
    clock = Clock()
    limits = TokenLimits(600, clock)
    limits.take(1, 60)
    with pytest.raises(HttpError) as refused:
        limits.take(1, 5000)
    assert refused.value.retry_after == 6
    clock.now += 6
    assert limits.take(1, 5000) == TokensLeft(600, 0, 500.0)


def test_a_key_that_used_its_tokens_is_told_when_it_has_more(limited: Server) -> None:
    body = {"prompt": "x" * 1500, "max_tokens": 200, "ignore_eos": True}
    with limited.client(headers=bearer("a")) as client:
        first = client.post("/v1/completions", json=body)
        assert (first.status_code, first.headers["x-ratelimit-limit-tokens"]) == (200, str(LIMIT))
        took = first.json()["usage"]["prompt_tokens"] + 200
        assert LIMIT - took <= remaining(first) < LIMIT - took + 20
        refused = client.post("/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert {"x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"} < set(refused.headers)
        anthropic = client.post("/v1/messages", json={"messages": chat("y" * 1500)["messages"], "max_tokens": 200})
        assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (429, "rate_limit_error")
        seconds = int(refused.headers["retry-after"])
        assert 0 < seconds <= 9
        with limited.client(headers=bearer("b")) as other:
            assert other.post("/v1/completions", json=body).status_code == 200, "of another key"
        time.sleep(seconds)
        # What was found in the cache took nothing.
        again = client.post("/v1/completions", json=body)
        assert again.status_code == 200
        assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 500
        eventually(lambda: remaining(client.post("/v1/completions", json={"prompt": "z", "max_tokens": 1})) > 500)


def test_a_stream_and_one_that_ends_early_are_settled_too(limited: Server) -> None:
    with limited.client(headers=bearer(CLEF)) as client:
        for stream in (False, True):
            body = chat(stream=stream, max_tokens=1000, stop=None, logit_bias={"257": 100}, ignore_eos=False)  # which ends at once
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert remaining(answer) < LIMIT - 1000
            eventually(lambda: remaining(client.post("/v1/completions", json={"prompt": "z", "max_tokens": 1})) > LIMIT - 200)
        with client.stream("POST", "/v1/chat/completions", json=chat(stream=True, max_tokens=900)) as answer:
            next(answer.iter_lines())
        eventually(lambda: remaining(client.post("/v1/completions", json={"prompt": "z", "max_tokens": 1})) > 200)


def test_a_key_is_compared_by_its_bytes(limited: Server) -> None:
    with limited.client() as client:
        for headers in ({b"x-api-key": CLEF.encode()}, bearer(CLEF)):
            assert client.get("/v1/models", headers=headers).status_code == 200
        for wrong in ("clé", "cle-a", CLEF + "x"):
            answer = client.get("/v1/models", headers={b"x-api-key": wrong.encode()})
            assert (answer.status_code, answer.json()["type"]) == (401, "error")


def test_kept_responses_are_bounded_in_bytes() -> None:
    kept = KeptResponses(4 * (ENTRY_BYTES + 100))
    for name in "abcd":
        kept.keep(1, name, KeptResponse(b"x" * 60, b"y" * 40))
    kept.keep(2, "large", KeptResponse(b"x" * 10_000, b""))
    assert [kept.find(1, name).items for name in "abcd"] == [b"x" * 60] * 4, "what has no room pushes nothing out"
    kept.keep(1, "e", KeptResponse(b"x" * 150, b""))
    for gone in ("a", "b", "large"):
        with pytest.raises(HttpError):
            kept.find(1, gone)
    with pytest.raises(HttpError):
        kept.find(2, "c")
    kept.delete(1, "c")
    kept.keep(1, "f", KeptResponse(b"", b""))
    assert [kept.find(1, name).num_bytes - ENTRY_BYTES for name in "def"] == [100, 150, 0]


def test_what_was_not_computed_is_not_paid_for_and_a_prompt_once(limited: Server) -> None:
    prompt = list(range(5, 205))
    with limited.client() as client:

        def ask(**fields: Any) -> Any:
            return client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 10, **fields}, headers=bearer("b"))

        before = remaining(ask(max_tokens=1))
        late = ask(n=8, deadline_seconds=1e-6)
        assert (late.status_code, late.json()["usage"]["completion_tokens"]) == (200, 0)
        eventually(lambda: remaining(ask(max_tokens=1, prompt=[5])) > before - 220)
        before = remaining(ask(max_tokens=1, prompt=[5]))
        assert ask(n=8, ignore_eos=True, prompt=[*prompt[::-1]]).json()["usage"]["completion_tokens"] == 80
        eventually(lambda: before - remaining(ask(max_tokens=1, prompt=[5])) < 320)
