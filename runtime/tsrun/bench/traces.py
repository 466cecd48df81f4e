"""Sessions that were recorded: JSON lines, each a conversation in OpenAI's format, as SWE-agent's and SWE-smith's trajectories are.

A line is `{"messages": [{"role", "content", "tool_calls"?}, ...]}`, or a list of such messages. Each message of the assistant is a request:
what came before it is the prompt, and the answer is as long as what was recorded, which the conversation then goes on with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tsrun.bench.sessions import Plan, Session, Turn
from tsrun.bench.words import generator
from tsrun.errors import InputError


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """Blocks of text joined; calls as JSON after it, since it is read again as text."""
        parts = [self.content] if isinstance(self.content, str) else [str(block.get("text", "")) for block in self.content or []]
        parts += [msgspec.json.encode(call.get("function", call)).decode() for call in self.tool_calls or []]
        return "\n".join(part for part in parts if part)


class _Line(msgspec.Struct):
    messages: list[_Message]


@dataclass(frozen=True, slots=True)
class Trace:
    """A plan whose sessions are recorded ones, over and over where there are fewer than asked for; pauses are the workload's."""

    plan: Plan
    lines: Sequence[Sequence[tuple[str, str]]]

    def session(self, number: int) -> Session:
        conversation = self.lines[number % len(self.lines)]
        random, load = generator(self.plan.seed, "pauses", number), self.plan.workload
        # A line that comes again is another conversation: only what all have before it may be found.
        again = f" ({self.plan.salt}/{number})"
        system = next((text for role, text in conversation if role == "system"), "")
        turns: list[Turn] = []
        pending: list[str] = []
        by_tool = False
        for role, text in conversation:
            if role in ("user", "tool"):
                pending.append(text)
                by_tool = role == "tool"
            elif role == "assistant" and pending:
                spoken = load.tools if by_tool else load.human
                seconds = spoken.seconds.draw(random) * self.plan.scale.pace if turns else 0.0
                say = "\n".join(pending) + ("" if turns else again)
                words = max(1, len(text.split()))
                turns.append(Turn(say, by_tool, max(4, round(words * self.plan.tokens_per_word)), seconds, recorded=text))
                pending = []
        return Session(number, system, tuple(turns))


def read_trace(file: Path) -> list[list[tuple[str, str]]]:
    """Conversations with at least one answer, as roles and texts. Raises InputError."""
    mend = 'each line is {"messages": [{"role": ..., "content": ...}, ...]}'
    found = []
    try:
        with file.open("rb") as lines:
            for index, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    messages = msgspec.json.decode(line, type=list[_Message] | _Line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise InputError("--trace", f"{file}:{index}: {error}", mend) from None
                said = [(one.role, one.text) for one in (messages.messages if isinstance(messages, _Line) else messages)]
                roles = [role for role, _ in said]
                if "assistant" in roles and any(role in ("user", "tool") for role in roles[: roles.index("assistant")]):
                    found.append(said)
    except OSError as error:
        raise InputError("--trace", f"{file} can not be read ({error.strerror})", "name a file of JSON lines") from None
    if not found:
        raise InputError("--trace", f"{file} has no conversation with an answer", mend)
    return found
