"""What the prefix cache has, for who follows it: all of it first, then what changes, each at the pace at which it passes that on."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tsrun.generation import PageEvent

_AT_ONCE = 512
"""Events of one message: some tens of KB."""
_MOST_BEHIND = 4
"""A follower that is so many times as far behind as there are pages, and a message more, begins anew."""

Name = TypeVar("Name", bound=Hashable)


@dataclass(slots=True)
class _Follower:
    """events: that it has not heard of; anew: its next message begins with forgetting; waits: for the next message."""

    events: deque[PageEvent] = field(default_factory=deque)
    anew: bool = True
    waits: bool = True


class PageFollowers(Generic[Name]):
    """Memory is bounded by the pages that there are: what a follower can not take in time, it gets as the state instead of its changes."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], PageEvent] = {}  # by group of ranks and hash; parents before children, as they were stored
        self._followers: dict[Name, _Follower] = {}

    def follow(self, name: Name) -> None:
        self._followers[name] = _Follower(deque(self._known.values()))

    def passed(self, name: Name) -> None:
        if name in self._followers:
            self._followers[name].waits = True

    def unfollow(self, name: Name) -> None:
        self._followers.pop(name, None)

    def take(self, events: Iterable[PageEvent]) -> None:
        events = list(events)
        for event in events:
            place = event.rank_group, event.hash
            if event.stored:
                self._known[place] = event
            else:
                self._known.pop(place, None)
        for follower in self._followers.values():
            follower.events.extend(events)
            if len(follower.events) > _MOST_BEHIND * len(self._known) + _AT_ONCE:
                follower.events, follower.anew = deque(self._known.values()), True

    def due(self) -> Iterator[tuple[Name, tuple[list[PageEvent], bool]]]:
        """For each follower that waits and has not heard all: its next events, and whether they begin anew."""
        for name, follower in self._followers.items():
            if follower.waits and (follower.events or follower.anew):
                events = [follower.events.popleft() for _ in range(min(_AT_ONCE, len(follower.events)))]
                yield name, (events, follower.anew)
                follower.anew = follower.waits = False
