"""Prompt lookup: what it drafts, that it learns what its drafts are worth, and who sees whose text; and how many drafts a step has."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import numpy as np
import pytest

from tsrun._core import Lookup, Outputs
from tsrun.lookup import LookupDrafters
from tsrun.step_cost import StepCost


def lookup(prompt: Sequence[int], outputs: Outputs | None = None) -> Lookup:
    return Lookup(np.array(prompt, dtype=np.int32), outputs or Outputs(1000))


def words(count: int, seed: int, most: int = 1000) -> list[int]:
    return random.Random(seed).choices(range(most), k=count)


def test_what_followed_the_same_tokens_is_drafted() -> None:
    text = words(300, 1)
    found = lookup([*text, *text[100:104]])
    tokens, chances = found.draft(20)
    assert tokens == text[104:124][: len(tokens)]
    assert len(tokens) > 3
    assert chances == sorted(chances, reverse=True)
    assert all(0 < chance < 1 for chance in chances)


def test_the_last_occurrence_counts() -> None:
    assert lookup([1, 2, 3, 4, 50, 9, 1, 2, 3, 4, 60, 9, 1, 2, 3, 4]).draft(1)[0] == [60]


def test_a_text_without_repetition_has_no_drafts() -> None:
    found = lookup(list(range(500)))
    for token in range(500, 1000):
        assert found.draft(8) == ([], [])
        found.take(token)


def test_a_loop_is_drafted_as_long_as_is_asked_for() -> None:
    found = lookup([7, 8, 9])
    for token in [1, 2, 3] * 40:
        found.take(token)
    assert found.draft(10)[0] == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("change", ["replaced", "inserted", "left out"])
def test_a_match_goes_on_after_a_small_change(change: str) -> None:
    """Not where the two tokens after the change stood last: a text that has them later, too, must not mislead."""
    text = words(200, 2)
    found = lookup([*text, *text[121:123], 5000])
    changed = {
        "replaced": [*text[:120], 2000, *text[121:]],
        "inserted": [*text[:120], 2000, *text[120:]],
        "left out": [*text[:120], *text[121:]],
    }
    answer = changed[change]
    for token in answer[:123]:
        found.take(token)
    assert found.draft(4)[0] == answer[123:127]


def drafts_of(found: Lookup, answer: Sequence[int]) -> tuple[float, float]:
    """Of an answer's tokens the share that was foreseen one by one; and the mean chance that was given them."""
    right, chances = 0, []
    for token in answer:
        tokens, chance = found.draft(1)
        right += tokens == [token]
        chances += chance
        found.take(token)
    return right / len(answer), sum(chances) / max(1, len(chances))


def test_a_file_with_a_change_in_every_twelfth_token_is_mostly_foreseen() -> None:
    text = words(2000, 3, most=300)
    answer = [token if index % 12 else 1000 + index for index, token in enumerate(text)]
    share, chance = drafts_of(lookup([*text, *answer[:30]]), answer[30:])
    assert share > 0.8
    assert abs(chance - share) < 0.12


def test_chances_say_how_often_drafts_come() -> None:
    """Of a text whose pairs of tokens come again, and say nothing of what follows."""
    some = random.Random(4)
    answer = [token for _ in range(2000) for token in (1, 2, some.randrange(100, 110))]
    share, chance = drafts_of(lookup([9]), answer)
    assert abs(chance - share) < 0.05


def test_a_token_costs_the_same_in_a_long_text() -> None:
    def seconds(length: int) -> float:
        found = lookup(words(length, 5, most=50))  # where nearly everything has stood before
        answer = words(2000, 6, most=50)
        began = time.perf_counter()
        for token in answer:
            found.take(token)
        return time.perf_counter() - began

    assert min(seconds(200_000) for _ in range(3)) < 8 * min(seconds(2_000) for _ in range(3))


def test_what_was_written_lately_is_found_and_then_forgotten() -> None:
    outputs = Outputs(500)
    text = words(200, 7)
    outputs.append(np.array(text, dtype=np.int32))
    assert lookup([9, *text[50:54]], outputs).draft(3)[0] == text[54:57]
    assert lookup([9, *text[-4:]], outputs).draft(3)[0] == []  # what follows is another's
    for seed in range(8, 14):
        outputs.append(np.array(words(200, seed), dtype=np.int32))
    assert lookup([9, *text[50:54]], outputs).draft(3)[0] == []
    late = words(200, 13)
    assert lookup([9, *late[50:54]], outputs).draft(3)[0] == late[54:57]


def test_salts_share_nothing() -> None:
    drafters = LookupDrafters()
    text = words(100, 15)
    writer = drafters.drafter([1, 2], "a", ())
    writer.take(text)
    writer.close()
    for salt, expected in (("a", text[54:56]), ("b", []), (None, [])):
        reader = drafters.drafter([9], salt, ())
        reader.take(text[50:54])
        assert reader.draft(2)[0] == expected


def test_salts_are_bounded() -> None:
    drafters = LookupDrafters()
    text = words(100, 16)
    writer = drafters.drafter([1, 2], "0", ())
    writer.take(text)
    writer.close()
    for salt in range(1, 100):
        drafters.drafter([1], str(salt), ())
    reader = drafters.drafter([9], "0", ())
    reader.take(text[50:54])
    assert reader.draft(2)[0] == []


def test_what_ends_an_answer_is_not_drafted() -> None:
    text = words(100, 17)
    drafter = LookupDrafters().drafter(text, None, {text[57]})
    drafter.take(text[50:55])
    assert drafter.draft(8)[0] == text[55:57]


def learned(seconds: dict[int, float]) -> StepCost:
    cost = StepCost()
    for _ in range(60):
        for rows, each in seconds.items():
            cost.learn(rows, each)
    return cost


def test_depth_is_what_makes_most_tokens_a_second() -> None:
    chain = [0.9**n for n in range(1, 20)]
    assert learned({1: 1.0, 20: 1.01}).depths(1, [chain], 64) == [19]  # rows are for nothing
    assert learned({1: 1.0, 2: 2.0, 20: 20.0}).depths(1, [chain], 64) == [0]  # each costs as much as the first
    (some,) = learned({1: 1.0, 20: 4.0}).depths(1, [chain], 64)
    assert 3 < some < 12
    assert learned({1: 1.0, 20: 4.0}).depths(1, [[0.01, 0.0001]], 64) == [0]


def test_the_best_drafts_of_all_go_first_and_rows_are_bounded() -> None:
    cost = learned({1: 1.0, 64: 1.1})
    assert cost.depths(2, [[0.9, 0.8, 0.1], [0.5, 0.4, 0.3]], 4) == [2, 2]
    assert cost.depths(3, [[0.9] * 10, [], [0.8] * 10], 10) == [10, 0, 0]


def test_a_branch_is_verified_where_it_brings_more_than_its_rows_take() -> None:
    free, dear = learned({1: 1.0, 20: 1.01}), learned({1: 1.0, 20: 20.0})
    assert free.branches(3, 2.0, [(0.3, 2), (0.3, 3), (0.001, 2)], 64) == [0, 1]
    assert free.branches(3, 2.0, [(0.2, 2), (0.6, 3)], 1) == [1]
    assert free.branches(3, 2.0, [(0.2, 2), (0.6, 3)], 0) == []
    assert dear.branches(3, 2.0, [(0.9, 2)], 64) == []


def test_drafts_stop_where_the_batch_is_large() -> None:
    """A step costs little more with more rows up to some 16, and then with each."""
    cost = learned({rows: max(1.0, rows / 16) for rows in range(1, 17)} | {64: 4.0})
    assert cost.depths(1, [[0.6, 0.36]], 64) == [2]
    assert cost.depths(32, [[0.6, 0.36]] * 32, 64) == [0] * 32


def test_what_did_not_pay_once_is_tried_again() -> None:
    cost = learned({1: 1.0})
    cost.learn(5, 50.0)  # somebody else had the processor
    chain = [[0.9, 0.8, 0.7, 0.6]]
    assert cost.depths(1, chain, 64) == [0]
    for _ in range(3000):
        if any(cost.depths(1, chain, 64)):
            break
        cost.learn(1, 1.0)
    else:
        pytest.fail("never")


def test_what_slows_all_steps_changes_no_depth() -> None:
    cost = learned({1: 1.0, 8: 1.5})
    chain = [[0.9**n for n in range(1, 16)]]
    before = cost.depths(1, chain, 64)
    for slower in np.linspace(1, 3, 200):
        cost.learn(8, 1.5 * slower)
    assert abs(before[0] - cost.depths(1, chain, 64)[0]) <= 3
