"""What all APIs share: from a conversation to tokens, from tokens to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

from tsrun.constraint import Constraint
from tsrun.errors import RequestError
from tsrun.generation import NO_EMBEDDINGS, NO_TOKENS, EmbeddingRequest, GenerationRequest
from tsrun.parsing import Choice, Tool, Unwritable
from tsrun.serve import constraints
from tsrun.serve.conversation import Conversation
from tsrun.serve.engine_client import EngineClient, Generation
from tsrun.serve.http_errors import ContextParts, HttpError, context_exceeded
from tsrun.serve.known_texts import KeptText
from tsrun.serve.messages import Ready
from tsrun.serve.metrics import Metrics
from tsrun.serve.reading import FirstCalls, Reading
from tsrun.serve.rendering import TOOLS_AS_TEXT, knows_tools, render
from tsrun.serve.shared_state import FindTokens, KeepText, State
from tsrun.serve.tools import parsed_tools
from tsrun.token_bytes import TokenBytes
from tsrun.tokenizer import Tokenizer

Result = TypeVar("Result")
_SHORT = 2_000
"""Characters of a prompt that are rendered and tokenized at once; longer ones in a thread, so that streams go on meanwhile."""
_FEW = 64
"""Messages that are read at once; more of them in a thread."""
_BYTES_PER_TOKEN = 16
"""Of a text that has no more than so many for each token of the context, none is looked for in the vocabulary that is longer."""
_LONGEST_TOKEN = 1024
"""Bytes, where the tokenizer does not say."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """text: None where the prompt came as tokens; owner: who may find what follows
    it, None where nothing is kept, since the text does not say all that the tokens do; goes_on: from an answer."""

    ids: Sequence[int]
    text: str | None = None
    owner: str | None = None
    goes_on: bool = False


class Front:
    """The model as the APIs see it."""

    def __init__(
        self, model: str, tokenizer: Tokenizer, engine: EngineClient, ready: Ready, vocabulary: int, choice: Choice, state: State
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.engine = engine
        self.ready = ready
        self.vocabulary = vocabulary
        self._choice = choice
        self.is_draining = False
        self.state = state
        self.metrics = Metrics(model, engine, ready)
        self.drops_nonces = True
        """Whether what clients put before a prompt for billing is left out of it."""
        self.embedding: int | None = None
        """How many numbers an embedding has, of a model that gives them instead of tokens."""
        self._keeps = _may_be_cut(tokenizer)
        self._thread = ThreadPoolExecutor(1, "tsrun-prompts")

    async def prompt_of(self, conversation: Conversation, owner: str | None = None) -> Prompt:
        """owner: who alone may find the turn again. Raises RequestError where the template refuses it, HttpError where it is too long."""
        self.check_open()
        prompt = await self.read(conversation, owner or "")
        self.check_length(prompt, "messages")
        return prompt

    async def read(self, conversation: Conversation, owner: str = "") -> Prompt:
        """The prompt, also where it is longer than the context. HttpError where it is so long that this is seen without tokenizing it."""
        text = await self.rendered(conversation)
        known = await self.state.ask(FindTokens(text, owner)) if self._keeps else None
        ids = [] if known is None else known.ids()
        self.metrics.known_tokens.inc(len(ids))
        rest = text if known is None else text.encode()[known.num_bytes :].decode()
        if rest or known is None:
            ids += await self.run(partial(self.tokenizer.encode_rendered, rest), size=len(rest))
        return Prompt(ids, text, owner, goes_on=any(m["role"] == "assistant" for m in conversation.messages))

    async def rendered(self, conversation: Conversation) -> str:
        """A conversation's text. HttpError as for `read`."""
        text = await self.run(partial(render, self.tokenizer, conversation), size=_size(conversation))
        await self.check_bytes(text, "messages")
        return text

    async def encoded(self, texts: Sequence[str], parts: ContextParts) -> list[Prompt]:
        """Texts that each begin a sequence. HttpError as for `read`."""
        self.check_open()
        for text in texts:
            await self.check_bytes(text, parts)
        return await self.run(lambda: [Prompt(self.encode(text), text) for text in texts], size=sum(map(len, texts)))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that begins a sequence, and of which nothing follows where the model gives embeddings."""
        return self.tokenizer.encode(text) if self.embedding is None else self.tokenizer.encode_whole(text)

    async def conversation(self, read: Callable[[], Conversation], given: Sequence[object]) -> Conversation:
        """What `read` makes of what was given as messages. HttpError where these are more than the context has tokens, of which each needs
        one: before any is looked at."""
        if len(given) > self.ready.max_context:
            raise context_exceeded(self.ready.max_context, len(given), "messages")
        return read() if len(given) <= _FEW else await self.run(read, size=_SHORT)

    async def run(self, function: Callable[[], Result], *, size: int) -> Result:
        """What a function of a text of so many characters gives."""
        return function() if size < _SHORT else await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def check_bytes(self, text: str, parts: ContextParts) -> None:
        """A token stands for so many bytes at most, and a text of more than the context has room for is not tokenized to learn that."""
        most = self.ready.max_context
        if len(text) <= most * _BYTES_PER_TOKEN:
            return
        longest = await self.run(self._longest_token, size=_SHORT)
        least = len(text.encode()) // longest
        if least >= most:
            raise context_exceeded(most, least, parts)

    def _longest_token(self) -> int:
        known = self._token_bytes
        return _LONGEST_TOKEN if known is None else max(map(len, known.of))

    def check_length(self, prompt: Prompt, parts: ContextParts) -> None:
        if len(prompt.ids) >= self.ready.max_context:
            raise context_exceeded(self.ready.max_context, len(prompt.ids), parts)

    def reading(
        self, conversation: Conversation, prompt: Prompt, own: Constraint | None = None, *, most_calls: int | None = None
    ) -> Reading:
        """How the answer to a conversation is to be written, and read. own: what the request says that it must look like."""
        choice = self._choice
        tools = parsed_tools(conversation) if conversation.tools else None
        must_call = bool(conversation.must_call)
        called = [tool for tool in tools or () if not must_call or tool.name in conversation.must_call]
        if tools and (not knows_tools(self.tokenizer.template_source) or (must_call and not _can_call(choice, called))):
            choice = replace(choice, tools=TOOLS_AS_TEXT)
        inside = prompt.text is not None and choice.starts_inside(prompt.text)
        parser = partial(choice.parser, tools, starts_inside=inside)
        first = parser if most_calls is None else lambda: FirstCalls(parser(), most_calls)
        constraint = constraints.whole(own, choice, called, must_call=must_call, starts_inside=inside, special_id=self.tokenizer.special_id)
        return Reading(first, self.tokenizer.special_ids_of(choice.tags), constraint)

    def check_open(self) -> None:
        if self.is_draining:
            raise HttpError(503, "the server is shutting down", retry_after=10)

    def check_gives(self, *, embeddings: bool) -> None:
        """Raises HttpError where the model gives the other: tokens, or embeddings."""
        if embeddings != (self.embedding is not None):
            what, mend = NO_EMBEDDINGS if embeddings else NO_TOKENS
            raise HttpError(400, f"{what}; {mend}", param="model", code="model_not_supported")

    def submit(self, request: GenerationRequest | EmbeddingRequest, identity: str) -> Generation:
        return self.engine.submit(request, identity)

    async def keep(self, prompt: Prompt, text: str, ids: Sequence[int]) -> None:
        """Remember what the model wrote, for the next turn."""
        if self._keeps and prompt.text is not None and prompt.owner is not None:
            await self.state.ask(KeepText(KeptText.of(prompt.text + text, [*prompt.ids, *ids], prompt.owner)))

    def token_text(self, token: int) -> str:
        return self.tokenizer.decode([token], self.tokenizer.special_ids)

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text; of a tokenizer that does not say, the bytes of its text."""
        known = self._token_bytes
        return self.token_text(token).encode() if known is None else known.of[token]

    @cached_property
    def _token_bytes(self) -> TokenBytes | None:
        try:
            return self.tokenizer.token_bytes()
        except RequestError:
            return None

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _can_call(choice: Choice, tools: Sequence[Tool]) -> bool:
    """Whether the format of the model's family has words for a call of one of the tools."""
    try:
        choice.form(tools, must_call=True)
    except Unwritable:
        return False
    return True


def _size(conversation: Conversation) -> int:
    """About so many characters; where it is long for sure, not how long."""
    if conversation.tools or len(conversation.messages) > _FEW:
        return _SHORT
    return sum(_SHORT if "tool_calls" in m else len(m["content"]) + len(m.get("reasoning_content", "")) for m in conversation.messages)


def _may_be_cut(tokenizer: Tokenizer) -> bool:
    """Whether a text's parts, encoded one by one, are that text: tokenizers that put a space before every text can not."""
    parts = ("Hello", " world", "\n", "x")
    ids = [index for part in parts for index in tokenizer.encode_rendered(part)]
    return tokenizer.decode(ids, tokenizer.special_ids) == "".join(parts)
