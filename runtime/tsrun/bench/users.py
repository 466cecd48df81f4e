"""Users who run sessions against a server: one request after the other each, with the pauses of tools and humans between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tsrun.bench.records import TurnRecord
from tsrun.bench.sessions import without_tools

if TYPE_CHECKING:
    from tsrun.bench.client import Answer, Client
    from tsrun.bench.sessions import Plan, Session, Turn

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Asking:
    """How requests are written. forces_length: `ignore_eos` goes with them, so that all servers make as many tokens; native_tools: tools
    are given as such, and what the model calls is answered as a tool."""

    model: str
    forces_length: bool = True
    native_tools: bool = False
    temperature: float = 0.0


@dataclass(slots=True)
class Conversation:
    """A session as it goes on. length: its tokens, as far as the server said; known: those that it can have in its cache."""

    system: str
    messages: Messages
    length: int = 0
    known: int = 0

    def fork(self) -> Conversation:
        return Conversation(self.system, list(self.messages), self.length, self.known)

    def compact(self, summary: str) -> None:
        self.messages, self.length, self.known = [{"role": "user", "content": summary}], 0, 0

    def say(self, turn: Turn, calls: list[dict[str, Any]]) -> None:
        """What is new: results of calls that the model made, otherwise a user's message (a tool's output, too, where it called none)."""
        if calls and turn.by_tool:
            self.messages += [{"role": "tool", "tool_call_id": call["id"], "content": turn.say} for call in calls]
        elif self.messages and self.messages[-1]["role"] == "user":  # after an answer that did not come
            self.messages[-1] = {"role": "user", "content": f"{self.messages[-1]['content']}\n{turn.say}"}
        else:
            self.messages.append({"role": "user", "content": turn.say})


@dataclass(slots=True)
class User:
    """Runs sessions, and tells of each request. opened: how many tokens of a harness' system message the server has seen, by its
    text; all users share it."""

    plan: Plan
    client: Client
    asking: Asking
    number: int
    opened: dict[str, int]
    on_turn: Callable[[TurnRecord], None]

    async def run(self, session: Session) -> None:
        share = self.plan.workload.harness.tools_share
        system = without_tools(session, share) if self.asking.native_tools else session.system
        conversation = Conversation(system, [])
        calls: list[dict[str, Any]] = []
        for index, turn in enumerate(session.turns):
            if turn.fork:
                turn = await self._fork(session, conversation, turn, calls)
            else:
                await asyncio.sleep(turn.seconds)
            calls = await self._turn(session, conversation, turn, calls, index)

    async def _fork(self, session: Session, conversation: Conversation, turn: Turn, calls: list[dict[str, Any]]) -> Turn:
        """Run a sub-agent; its last answer is what the turn then says."""
        child, said = conversation.fork(), calls
        for index, step in enumerate(turn.fork):
            await asyncio.sleep(step.seconds)
            said = await self._turn(session, child, step, said, index, forked=True)
        return replace(turn, say=str(child.messages[-1].get("content") or turn.say))

    async def _turn(
        self, session: Session, conversation: Conversation, turn: Turn, calls: list[dict[str, Any]], index: int, *, forked: bool = False
    ) -> list[dict[str, Any]]:
        """One request; the calls of its answer."""
        comes = len(turn.say.split()) * self.plan.tokens_per_word + turn.answer_tokens
        if conversation.length and conversation.length + comes > self.plan.workload.compaction * self.plan.context:
            conversation.compact(session.summary)
            calls = []
        conversation.say(turn, calls)
        body = self._body(session, conversation, turn)
        eligible = conversation.known or self.opened.get(session.system, 0)
        answer = await self.client.chat(body, turn.cancel_after)
        self._keep(session, turn, answer, index, eligible, forked=forked)
        if answer.failed:
            return []
        if session.hostile is None and not index and not forked and answer.prompt_tokens:
            words = max(1, sum(len(str(message["content"]).split()) for message in body["messages"]))
            self.opened.setdefault(session.system, round(answer.prompt_tokens * len(session.system.split()) / words))
        if answer.prompt_tokens:  # who goes away is not told
            conversation.length = answer.prompt_tokens + answer.completion_tokens
            conversation.known = 0 if session.hostile == "nonce" else conversation.length
        text = answer.text if turn.recorded is None else turn.recorded
        said: dict[str, Any] = {"role": "assistant", "content": text or " "}
        if answer.calls and turn.recorded is None and not answer.cancelled:
            said["tool_calls"] = answer.calls
        conversation.messages.append(said)
        return answer.calls if "tool_calls" in said else []

    def _body(self, session: Session, conversation: Conversation, turn: Turn) -> dict[str, Any]:
        system = conversation.system
        if session.hostile == "nonce":
            system = f"{uuid4().hex}\n{system}"
        body: dict[str, Any] = {
            "model": self.asking.model,
            "messages": [{"role": "system", "content": system}, *conversation.messages],
            "max_tokens": turn.answer_tokens,
            "temperature": self.asking.temperature,
        }
        if self.asking.forces_length:
            body["ignore_eos"] = True
        if self.asking.native_tools:
            body["tools"] = list(session.tools)
        if session.hostile == "schema":
            schema = {"name": "broken", "schema": {"type": "no such type"}}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _keep(self, session: Session, turn: Turn, answer: Answer, index: int, eligible: int, *, forked: bool) -> None:
        self.on_turn(TurnRecord.of(answer, self.number, session, index, eligible, forked=forked))
