"""What the requests of all HTTP processes have in common: who has how much under way, the tokens of earlier turns, sessions, responses.

It is in the server's first process. The APIs ask it by messages, so that they are the same where it is in their own process and where it
is in another (`state_channel.py`).
"""

from __future__ import annotations

import asyncio
from typing import Any, Generic, Protocol, TypeVar, assert_never

import msgspec

from tsrun.serve.admission import Admission
from tsrun.serve.kept_responses import KeptResponse, KeptResponses
from tsrun.serve.known_texts import KeptText, KnownTexts, KnownTokens
from tsrun.serve.sessions import Sessions
from tsrun.serve.token_limits import TokensLeft

Reply = TypeVar("Reply")
_LONG = 2_000
"""Characters of a text that are hashed in a thread, so that others are answered meanwhile."""


class Question(msgspec.Struct, Generic[Reply], tag=True):
    """One that is answered by a `Reply`, or by HttpError."""


class FindTokens(Question[KnownTokens | None], tag=True):
    """Of the longest beginning of a text that is known."""

    text: str
    owner: str


class KeepText(Question[None], tag=True):
    what: KeptText


class Entered(msgspec.Struct):
    """earlier: of the prompt, the tokens that an earlier turn of its session had (`Sessions.note`); left: of a key whose tokens are
    limited."""

    earlier: int | None = 0
    left: TokensLeft | None = None


class SessionTurn(msgspec.Struct):
    """A prompt of a session; goes_on: from an answer."""

    session: str
    text: str
    num_tokens: int
    goes_on: bool


class Enter(Question[Entered], tag=True):
    """A request, known by a name of its own, would begin so many answers, and use so many tokens at most."""

    entry: str
    user: int
    num_answers: int
    num_tokens: int
    turn: SessionTurn | None = None


class Leave(Question[None], tag=True):
    """Answers of a request have ended; num_taken: their share of what `Enter` took, of which so much was used. Of a request that was not
    let in: nothing."""

    entry: str
    num_answers: int
    num_taken: int
    num_used: int


class KeepResponse(Question[None], tag=True):
    user: int
    identity: str
    what: KeptResponse


class FindResponse(Question[KeptResponse], tag=True):
    user: int
    identity: str


class DeleteResponse(Question[None], tag=True):
    user: int
    identity: str


AnyQuestion = FindTokens | KeepText | Enter | Leave | KeepResponse | FindResponse | DeleteResponse
REPLIES: dict[type[Any], Any] = {FindTokens: KnownTokens | None, Enter: Entered, FindResponse: KeptResponse}
"""What the others are answered by is nothing."""


class State(Protocol):
    async def ask(self, question: Question[Reply]) -> Reply:
        """Raises HttpError."""

    def tell(self, question: Question[None]) -> None:
        """Without waiting until it is done. What is asked later is answered later."""


class LocalState:
    """In this process."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._known = KnownTexts()
        self._sessions = Sessions()
        self._responses = KeptResponses()

    async def ask(self, question: Question[Reply]) -> Reply:
        if isinstance(question, FindTokens) and len(question.text) > _LONG:
            found: Any = await asyncio.to_thread(self.answer, question)
        else:
            found = self.answer(question)
        reply: Reply = found
        return reply

    def tell(self, question: Question[None]) -> None:
        self.answer(question)

    def answer(self, question: Any) -> Any:
        asked: AnyQuestion = question
        match asked:
            case FindTokens(text, owner):
                return self._known.find(text, owner)
            case KeepText(what):
                self._known.keep(what)
            case Enter(entry, user, num_answers, num_tokens, turn):
                left = self._admission.enter(entry, user, num_answers, num_tokens)
                earlier: int | None = 0
                if turn is not None:
                    key = f"{user} {turn.session}"
                    earlier = self._sessions.note(key, turn.text, turn.num_tokens, goes_on=turn.goes_on)
                return Entered(earlier, left)
            case Leave(entry, num_answers, num_taken, num_used):
                self._admission.leave(entry, num_answers, num_taken, num_used)
            case KeepResponse(user, identity, what):
                self._responses.keep(user, identity, what)
            case FindResponse(user, identity):
                return self._responses.find(user, identity)
            case DeleteResponse(user, identity):
                self._responses.delete(user, identity)
            case _:
                assert_never(asked)
        return None
