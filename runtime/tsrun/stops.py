"""Stop strings over streamed text: what can be shown already, and whether a stop has been met."""

from __future__ import annotations

from collections.abc import Sequence

from tsrun.errors import RequestError


class StopStrings:
    """Withholds text that could still become a stop string.

    The stop whose last character comes first wins, and of two that end together the longer: that does not depend on
    how the text was cut into pieces. The stop string itself and what follows it are never given out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise RequestError("stop", "an empty stop string would stop everything", "leave it out")
        self._stops = tuple(stops)
        self._held = ""
        self.met: str | None = None

    def feed(self, text: str) -> str:
        """Take the next piece; return what may be shown. After a stop was met everything is swallowed."""
        if self.met is not None:
            return ""
        text = self._held + text
        found = min(
            ((at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0),
            default=None,
        )
        if found is not None:
            _, at, self.met = found
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text withheld, once it is known that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
