"""Why a turn's prompt was computed anew, where a client sends several conversations under one session."""

from __future__ import annotations

from typing import Any

from tests.serve.conftest import Server
from tests.serve.test_http import chat

from tsrun.serve.endpoints import anthropic_session
from tsrun.serve.sessions import MOST_TURNS, Sessions, miss_reason, session_key

BEGINNING = "a beginning that is long enough to fill several pages of the cache, so that its loss would show"


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


def test_a_turn_is_compared_with_the_conversation_that_it_goes_on_from() -> None:
    sessions = Sessions()
    assert sessions.note("s", "a title, please", 15, goes_on=False) == 0
    assert sessions.note("s", "question", 8, goes_on=False) == 0
    assert sessions.note("s", "question answer more", 20, goes_on=True) == 8
    assert sessions.note("s", "helper", 6, goes_on=False) == 0
    assert sessions.note("s", "question answer more and more", 29, goes_on=True) == 20
    assert sessions.note("s", "Question answer more and more", 29, goes_on=True) is None
    assert sessions.note("other", "Question answer", 15, goes_on=True) == 0, "nothing is known of it"
    for number in range(MOST_TURNS):
        sessions.note("s", f"{number}", 1, goes_on=False)
    assert sessions.note("s", "question answer more and more yet", 33, goes_on=True) is None, "forgotten"


def test_a_miss_is_changed_or_evicted() -> None:
    assert [miss_reason(None, 0, 16), miss_reason(40, 31, 16), miss_reason(40, 32, 16), miss_reason(0, 0, 16)] == [
        "prefix_changed",
        "evicted",
        None,
        None,
    ]


def test_a_title_between_two_turns_is_no_miss(server: Server) -> None:
    def asked(*messages: dict[str, str], **fields: Any) -> Any:
        answer = client.post("/v1/chat/completions", json=chat(session_id="titles", **fields) | {"messages": messages})
        return answer.json()["usage"]

    with server.client() as client:
        user = {"role": "user", "content": BEGINNING}
        more = [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}]
        assert "cache_miss_reason" not in asked({"role": "user", "content": f"a title for: {BEGINNING}"})
        assert "cache_miss_reason" not in asked(user)
        assert "cache_miss_reason" not in asked({"role": "user", "content": f"a shorter title for: {BEGINNING}"})
        # The toy's template writes an answer in another way than it asks for it: it has not the turn before to begin with.
        assert asked(user, *more)["cache_miss_reason"] == "prefix_changed"
        # An answer that is to go on has no such mark, and is what the next turn begins with.
        assert "cache_miss_reason" in asked(user, {**more[0], "content": "yes, it"}, continue_final_message=True)
        assert "cache_miss_reason" not in asked({"role": "user", "content": f"a last title for: {BEGINNING}"})
        found = asked(user, {**more[0], "content": "yes, it is"}, more[1])
        assert "cache_miss_reason" not in found
        assert found["prompt_tokens_details"]["cached_tokens"] > 64
