"""The tokens of earlier turns, which later ones begin with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsrun.serve.known_texts import KnownTexts

LONG = "a conversation that is long enough to be worth keeping, for a while at least. "


class Counting:
    """One token a character; what it was asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str) -> list[int]:
        self.texts.append(text)
        return [ord(letter) for letter in text]


def test_a_turn_begins_with_the_tokens_of_the_one_before() -> None:
    encode = Counting()
    known = KnownTexts(encode)
    assert known.encode(LONG).known == 0
    known.keep(LONG + "one", [7] * 20)
    known.keep(LONG + "one two", [8] * 25)
    found = known.encode(LONG + "one two three")
    assert (found.ids, found.known) == ([8] * 25 + [ord(letter) for letter in " three"], 25)
    assert encode.texts == [LONG, " three"]
    assert known.encode(LONG + "one tw").ids == [7] * 20 + [ord(letter) for letter in " tw"]
    assert known.encode(LONG + "onf").known == 0


def test_where_texts_may_not_be_cut_none_is_found() -> None:
    known = KnownTexts(Counting(), cuts=False)
    known.keep(LONG, [1])
    assert known.encode(LONG).known == 0


def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    known = KnownTexts(Counting(), most_bytes=4 * 250)
    for name in "abc":
        known.keep(LONG + name, [1] * 100)  # two of them have room
        known.encode(LONG + "b" + "more")
    assert [known.encode(LONG + name).known for name in "abc"] == [0, 100, 100]
    known.keep(LONG + "d", [1] * 1000)
    assert known.encode(LONG + "d").known == 0


@given(st.lists(st.text(alphabet="ab\u00e9\U0001f600", max_size=40), max_size=12), st.text(alphabet="ab\u00e9\U0001f600", max_size=90))
def test_it_is_the_longest_kept_beginning(kept: list[str], text: str) -> None:
    known = KnownTexts(Counting())
    for number, one in enumerate(kept):
        known.keep(LONG + one, [number])
    found = known.encode(LONG + text)
    fitting = [one for one in kept if text.startswith(one)]
    longest = max(fitting, key=len, default=None)
    assert found.known == (0 if longest is None else 1)
    if longest is not None:
        assert found.ids == [max(i for i, one in enumerate(kept) if one == longest), *map(ord, text[len(longest) :])]


@pytest.mark.parametrize("size", [100, 1000])
def test_keeping_and_forgetting_keeps_its_books(size: int) -> None:
    known = KnownTexts(Counting(), most_bytes=4 * 64 * 20)
    for number in range(size):
        known.keep(LONG + "x" * (number % 37) + str(number), list(np.arange(64)))
    assert len(known) == 20
