"""Who follows the prefix cache knows what it has, however slow it is, and costs no more memory than there are pages."""

from __future__ import annotations

import random

from tsrun.generation import PageEvent
from tsrun.serve.page_followers import _AT_ONCE, _MOST_BEHIND, PageFollowers

Known = set[tuple[int, int]]


def stored(number: int, parent: int = 0, group: int = 0) -> PageEvent:
    return PageEvent(True, group, number, parent, (number,))


def deliver(followers: PageFollowers[str], heard: dict[str, Known]) -> bool:
    """Take all that is due; whether anything was."""
    due = list(followers.due())
    for name, (events, anew) in due:
        if anew:
            heard[name].clear()
        for event in events:
            (heard[name].add if event.stored else heard[name].discard)((event.rank_group, event.hash))
    return bool(due)


def test_a_follower_hears_what_there_is_and_then_what_changes() -> None:
    followers: PageFollowers[str] = PageFollowers()
    followers.take([stored(1), stored(2, 1), PageEvent(False, 0, 1, 0)])
    followers.follow("late")
    ((_, (events, anew)),) = followers.due()
    assert ([event.hash for event in events], anew) == ([2], True)
    followers.take([stored(3, 2)])
    assert list(followers.due()) == [], "nothing before what came last was passed on"
    followers.passed("late")
    ((_, (events, anew)),) = followers.due()
    assert ([event.hash for event in events], anew) == ([3], False)
    followers.unfollow("late")
    followers.passed("late")
    followers.take([stored(4)])
    assert list(followers.due()) == []


def test_an_empty_cache_is_told_of_too() -> None:
    followers: PageFollowers[str] = PageFollowers()
    followers.follow("x")
    assert list(followers.due()) == [("x", ([], True))]
    followers.passed("x")
    assert list(followers.due()) == []


def test_followers_of_any_pace_know_the_same_in_bounded_memory() -> None:
    chance = random.Random(5)
    followers: PageFollowers[str] = PageFollowers()
    truth: Known = set()
    heard: dict[str, Known] = {"fast": set(), "slow": set(), "stuck": set()}
    for name in heard:
        followers.follow(name)
    for number in range(1, 20_000):
        place = chance.randrange(2), chance.randrange(1, 300)
        event = PageEvent(place not in truth, place[0], place[1], 0)
        truth ^= {place}
        followers.take([event])
        deliver(followers, heard)
        for name, every in (("fast", 1), ("slow", 700)):  # the third never passes anything on
            if number % every == 0:
                followers.passed(name)
        most = _MOST_BEHIND * 600 + _AT_ONCE
        assert all(len(follower.events) <= most for follower in followers._followers.values())
        assert heard["fast"] == truth
    assert heard["slow"] != truth
    for name in heard:
        followers.passed(name)
    while deliver(followers, heard):
        for name in heard:
            followers.passed(name)
    assert all(known == truth for known in heard.values())
