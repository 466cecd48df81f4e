"""Which of the running requests the steps do not bring forward. Who waits in the queue makes no progress, and need not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tsrun.generation import Running

_FEWEST_STEPS = 4
"""Without a request, before it counts: two may be under way, and one is left out before it gives its pages up."""


def look_seconds(patience: float) -> float:
    """Between looks of a watchdog that waits for so long."""
    return min(1.0, patience / 10)


@dataclass(slots=True)
class _Seen:
    """A request as it was found when it had last advanced, in seconds and steps."""

    at: tuple[int, int]
    since: float
    step: int


@dataclass
class Progress:
    """Of the requests of one engine, which are looked at now and then. seconds: without progress, after which one is stuck."""

    seconds: float
    _seen: dict[int, _Seen] = field(default_factory=dict)

    def stuck(self, running: Sequence[Running], steps: int, now: float) -> list[Running]:
        """Those that have neither a token nor a part of their prompt more than so long ago, though there were steps. steps: so far."""
        seen: dict[int, _Seen] = {}
        for one in running:
            at = one.computed, one.length
            before = self._seen.get(one.request)
            seen[one.request] = _Seen(at, now, steps) if before is None or before.at != at else before
        self._seen = seen  # who is not among them waits, or has ended
        late = {request for request, one in seen.items() if now - one.since >= self.seconds and steps - one.step >= _FEWEST_STEPS}
        return [one for one in running if one.request in late]
