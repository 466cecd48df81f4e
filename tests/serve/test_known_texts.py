"""The tokens of earlier turns, which later ones begin with."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsrun.serve.known_texts import ENTRY_BYTES, KeptText, KnownTexts

LONG = "a conversation that is long enough to be worth keeping, for a while at least. "


def found(known: KnownTexts, text: str, owner: str = "") -> tuple[str, list[int]] | None:
    """What is known of a text: its beginning, and that one's tokens."""
    tokens = known.find(text, owner)
    return None if tokens is None else (text.encode()[: tokens.num_bytes].decode(), tokens.ids())


def test_a_turn_begins_with_the_tokens_of_the_one_before() -> None:
    known = KnownTexts()
    assert found(known, LONG) is None
    known.keep(KeptText.of(LONG + "one", [7] * 20))
    known.keep(KeptText.of(LONG + "one two", [8] * 25))
    assert found(known, LONG + "one two three") == (LONG + "one two", [8] * 25)
    assert found(known, LONG + "one tw") == (LONG + "one", [7] * 20)
    assert found(known, LONG + "onf") is None


def test_only_its_owner_finds_a_text() -> None:
    known = KnownTexts()
    known.keep(KeptText.of(LONG, [1], "a"))
    assert (found(known, LONG, "a"), found(known, LONG, "b"), found(known, LONG)) == ((LONG, [1]), None, None)


def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    known = KnownTexts(2 * (ENTRY_BYTES + 400) + 399)
    for name in "abc":
        known.keep(KeptText.of(LONG + name, [1] * 100))  # two of them have room
        known.find(LONG + "b" + "more")
    assert [found(known, LONG + name) is not None for name in "abc"] == [False, True, True]
    known.keep(KeptText.of(LONG + "d", [1] * 1000))
    assert found(known, LONG + "d") is None


@given(st.lists(st.text(alphabet="ab\u00e9\U0001f600", max_size=40), max_size=12), st.text(alphabet="ab\u00e9\U0001f600", max_size=90))
def test_it_is_the_longest_kept_beginning(kept: list[str], text: str) -> None:
    known = KnownTexts()
    for number, one in enumerate(kept):
        known.keep(KeptText.of(LONG + one, [number]))
    fitting = [one for one in kept if text.startswith(one)]
    longest = max(fitting, key=len, default=None)
    if longest is None:
        assert found(known, LONG + text) is None
    else:
        assert found(known, LONG + text) == (LONG + longest, [max(i for i, one in enumerate(kept) if one == longest)])


@pytest.mark.parametrize("size", [100, 1000])
def test_keeping_and_forgetting_keeps_its_books(size: int) -> None:
    known = KnownTexts((ENTRY_BYTES + 4 * 64) * 20)
    for number in range(size):
        known.keep(KeptText.of(LONG + "x" * (number % 37) + str(number), range(64)))
    assert len(known) == 20


def test_many_small_texts_take_no_more_memory_than_they_may() -> None:
    most = 4 * 2**20
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    known = KnownTexts(most)
    for number in range(10_000):
        known.keep(KeptText.of(f"{LONG} {number} {'x' * (number % 8000)}", [number]))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(known) < 10_000
    assert 0.3 * most < taken < most
