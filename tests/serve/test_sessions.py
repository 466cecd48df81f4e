"""Turns of one conversation, and why a prompt was computed anew."""

from __future__ import annotations

from tests.serve.conftest import Server

from tsrun.serve.endpoints import anthropic_session
from tsrun.serve.sessions import MOST_SESSIONS, Sessions, miss_reason, session_key


def test_the_key_is_the_first_that_is_given() -> None:
    headers = {b"x-session-affinity": "h"}
    assert session_key([None, "body"], headers) == "body"
    assert session_key([None], headers) == "h"
    assert session_key([None], {}) is None


def test_claude_codes_session_is_within_its_user() -> None:
    assert anthropic_session('{"session_id": "s", "device_id": "d"}') == "s"
    assert anthropic_session("user_abc_account__session_s-1") == "s-1"
    assert anthropic_session("someone") is None
    assert anthropic_session(3) is None


def test_the_oldest_session_is_forgotten() -> None:
    sessions = Sessions()
    for number in range(MOST_SESSIONS + 1):
        assert sessions.note(str(number), "t", 1) is None
    assert sessions.note("0", "t", 1) is None
    assert sessions.note("2", "t", 1) is not None


def test_a_miss_has_a_reason() -> None:
    sessions = Sessions()
    sessions.note("s", "abc", 40)
    before = sessions.note("s", "abcdef", 60)
    assert miss_reason(before, "abcdef", 32, 16) is None
    assert miss_reason(before, "abcdef", 16, 16) == "evicted"
    assert miss_reason(before, "xbcdef", 0, 16) == "prefix_changed"
    assert miss_reason(None, "x", 0, 16) is None


def test_a_changed_prefix_is_told_of_in_usage(server: Server) -> None:
    def usage(text: str) -> dict[str, object]:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "session_id": "one"}
        with server.client() as client:
            found: dict[str, object] = client.post("/v1/chat/completions", json=body).json()["usage"]
            return found

    assert "cache_miss_reason" not in usage("a turn that is long enough to fill a page of the cache or two")
    assert usage("another turn that is long enough to fill a page")["cache_miss_reason"] == "prefix_changed"
