"""Text as it streams: however tokens and text are cut, the pieces join to the same text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.toy import byte_tokenizer
from tokenizers import Tokenizer, decoders, models

from tsrun.detokenizer import Detokenizer
from tsrun.errors import RequestError
from tsrun.generation import GenerationRequest
from tsrun.stops import StopStrings
from tsrun.stream import Stream

BYTES = byte_tokenizer()


class BytesDecoder:
    def decode(self, ids: Sequence[int], shown: Collection[int] = ()) -> str:
        text: str = BYTES.decode(list(ids), skip_special_tokens=True)
        return text


def ids_of(text: str) -> list[int]:
    ids: list[int] = BYTES.encode(text, add_special_tokens=False).ids
    return ids


@given(st.text(max_size=30))
def test_streamed_text_is_the_text_of_the_tokens(text: str) -> None:
    detokenizer = Detokenizer(BytesDecoder())
    pieces = [detokenizer.feed(token) for token in ids_of(text)]
    assert "".join(pieces) + detokenizer.flush() == text


@given(st.lists(st.integers(0, 257), max_size=40))
def test_streamed_text_of_any_tokens_is_what_decoding_at_once_gives(ids: list[int]) -> None:
    detokenizer = Detokenizer(BytesDecoder())
    pieces = [detokenizer.feed(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == BytesDecoder().decode(ids)


@given(st.text(alphabet="aé漢🙂", min_size=1, max_size=12))
def test_no_piece_holds_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(BytesDecoder())
    assert all("\ufffd" not in detokenizer.feed(token) for token in ids_of(text))


def test_bytes_that_never_become_a_character_come_out_at_the_end() -> None:
    detokenizer = Detokenizer(BytesDecoder())
    assert "".join(detokenizer.feed(token) for token in ids_of("aé")[:-1]) == "a"
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_the_space_before_the_first_word_is_kept_where_the_decoder_strips() -> None:
    tokenizer = Tokenizer(models.BPE({"▁the": 0, "▁cat": 1, "▁sat": 2}, []))
    tokenizer.decoder = decoders.Metaspace()

    class Words:
        def decode(self, ids: Sequence[int]) -> str:
            text: str = tokenizer.decode(list(ids))
            return text

    detokenizer = Detokenizer(Words(), prompt=[0])
    assert [detokenizer.feed(1), detokenizer.feed(2)] == [" cat", " sat"]


def unstreamed(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: grow the text character by character until it ends in a stop; cut the longest that it ends in."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - len(max(met, key=len))], True
    return text, False


letters = st.text(alphabet="abc", max_size=24)
some_stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


@given(letters, some_stops, st.lists(st.integers(0, 24), max_size=8))
def test_a_stop_string_is_found_however_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    matcher = StopStrings(stops)
    shown = "".join(matcher.feed(text[a:b]) for a, b in pairwise(bounds)) + matcher.flush()
    assert (shown, matcher.met is not None) == unstreamed(text, stops)


@given(letters, some_stops)
def test_text_that_can_not_become_a_stop_is_shown_at_once(text: str, stops: list[str]) -> None:
    matcher, shown = StopStrings(stops), ""
    for end, letter in enumerate(text, start=1):
        shown += matcher.feed(letter)
        if matcher.met is not None:
            return
        withheld = text[len(shown) : end]
        assert not withheld or any(stop.startswith(withheld) and stop != withheld for stop in stops)
    assert shown + matcher.flush() == text


@given(st.text(alphabet="aé漢", max_size=10), st.lists(st.text(alphabet="aé漢", min_size=1, max_size=3), max_size=2))
def test_stop_strings_may_span_tokens_and_characters_span_them_too(text: str, stops: list[str]) -> None:
    ids = ids_of(text)
    request = GenerationRequest([1], stop=tuple(stops))
    stream = Stream(request, decoder=BytesDecoder(), eos_ids=[], max_tokens=max(1, len(ids)))
    shown, reason = "", None
    for token in ids:
        piece, reason = stream.take(token)
        shown += piece
        if reason is not None:
            break
    expected, stopped = unstreamed(text, stops)
    if ids:
        assert (shown, reason) == (expected, "stop" if stopped else "length")


def test_text_withheld_for_a_stop_comes_out_at_eos() -> None:
    stream = Stream(GenerationRequest([1], stop=("abc",)), decoder=BytesDecoder(), eos_ids=[257], max_tokens=9)
    assert [stream.take(token) for token in (*ids_of("xab"), 257)] == [("x", None), ("", None), ("", None), ("ab", "stop")]


def test_a_stream_without_a_tokenizer_has_no_text() -> None:
    stream = Stream(GenerationRequest([1]), decoder=None, eos_ids=[7], max_tokens=2)
    assert [stream.take(5), stream.take(6)] == [("", None), ("", "length")]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty stop string"):
        StopStrings(["a", ""])
