"""The states of a request in docs/scheduler.md, from the table that it was compiled with; `tsrun explain scheduler` prints it."""

from __future__ import annotations

from tsrun._core import Scheduler

BEGIN = "<!-- written by `tsrun explain scheduler`; a test compares, and `pytest --update-golden` rewrites it -->"
END = "<!-- end -->"


def states() -> str:
    """The diagram and the table of edges, between their marks."""
    edges = [(state, event, after, meaning) for state, event, after, meaning in Scheduler.transitions() if after]
    arrows: dict[tuple[str, str], list[str]] = {}
    for state, event, after, _ in edges:
        arrows.setdefault((state, after), []).append(event)
    return "\n".join(
        [
            BEGIN,
            "",
            "```mermaid",
            "stateDiagram-v2",
            "    [*] --> waiting: submit",
            *(f"    {state} --> {after}: {', '.join(events)}" for (state, after), events in arrows.items()),
            "    ended --> [*]",
            "```",
            "",
            "| in state | event | next state | |",
            "|---|---|---|---|",
            *(f"| `{state}` | `{event}` | `{after}` | {meaning} |" for state, event, after, meaning in edges),
            "",
            END,
            "",
        ]
    )
