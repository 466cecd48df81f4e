"""What models write, of every format, means the same however it is cut."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
from tests.parsing.corpus.all import CASES
from tests.parsing.corpus.case import TOOLS, Case, Meaning, meaning

from tsrun.parsing import TOOL_FORMATS, CallArguments, Choice, Content, Part, Reasoning, named

NUM_SPLITS = 50


def parse(choice: Choice, pieces: Iterable[str], *, starts_inside: bool = False) -> list[Part]:
    parser = choice.parser(TOOLS, starts_inside=starts_inside)
    parts = [part for piece in pieces for part in parser.feed(piece)]
    return parts + parser.finish()


def means(case: Case, pieces: Iterable[str]) -> tuple[Meaning, ...]:
    return meaning(parse(case.choice, pieces, starts_inside=case.starts_inside))


def splits(text: str, seed: str) -> Iterable[list[str]]:
    """The text by character, and cut at random places."""
    yield list(text)
    numbers = random.Random(seed)
    for _ in range(NUM_SPLITS):
        cuts = sorted(numbers.randint(0, len(text)) for _ in range(numbers.randint(1, 8)))
        yield [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_text_means_what_it_should(case: Case) -> None:
    assert means(case, [case.text]) == case.expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_means_the_same_however_it_is_cut(case: Case) -> None:
    whole = joined(parse(case.choice, [case.text], starts_inside=case.starts_inside))
    for pieces in splits(case.text, case.name):
        assert joined(parse(case.choice, pieces, starts_inside=case.starts_inside)) == whole, pieces


def joined(parts: list[Part]) -> list[Part]:
    """Adjacent text and pieces of arguments as one part: the text of arguments, too, has to be the same."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        match last, part:
            case (Content(a), Content(b)):
                found[-1] = Content(a + b)
            case (Reasoning(a), Reasoning(b)):
                found[-1] = Reasoning(a + b)
            case (CallArguments(index, a), CallArguments(_, b)):
                found[-1] = CallArguments(index, a + b)
            case _:
                found.append(part)
    return found


def test_the_corpus_is_large_and_covers_every_format() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.choice.tools for case in CASES} >= set(TOOL_FORMATS)
    made = [case for case in CASES if any(not isinstance(item, str) for item in case.expected)]
    assert len(made) > len(CASES) // 2


@pytest.mark.parametrize("tools", sorted(set(TOOL_FORMATS) - {"harmony"}))
def test_without_tools_in_the_request_calls_are_content(tools: str) -> None:
    for case in CASES:
        if case.choice.tools == tools and case.choice.reasoning is None:
            parser = named(tools=tools).parser()
            assert meaning([*parser.feed(case.text), *parser.finish()]) == ((case.text,) if case.text else ())
