"""`/tokenize` and `/detokenize`, in vLLM's form."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from tsrun.serve.conversation import Conversation, openai_messages
from tsrun.serve.front import Front
from tsrun.serve.http_errors import invalid
from tsrun.serve.tools import offered


class Tokenize(msgspec.Struct, kw_only=True):
    """A prompt, or messages as chat completions would render them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    async def answer(self, front: Front) -> dict[str, Any]:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("prompt", "give either `prompt` or `messages`")
        encode = front.encode
        if self.messages is not None:
            text = await front.rendered(await front.conversation(partial(self._conversation, self.messages), self.messages))
            encode = front.tokenizer.encode_rendered
        else:
            assert self.prompt is not None
            text = self.prompt
            await front.check_bytes(text, "prompt")
            if self.add_special_tokens is False:
                encode = front.tokenizer.encode_rendered
        ids = await front.run(partial(encode, text), size=len(text))
        return {"count": len(ids), "max_model_len": front.ready.max_context, "tokens": ids}

    def _conversation(self, messages: list[Any]) -> Conversation:
        return Conversation(openai_messages(messages), offered(self.tools, None), self.chat_template_kwargs or {})


class Detokenize(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]

    async def answer(self, front: Front) -> dict[str, Any]:
        outside = [index for index in self.tokens if not 0 <= index < front.vocabulary]
        if outside:
            raise invalid("tokens", f"tokens: {outside[0]} is outside of the vocabulary of {front.vocabulary}")
        decode = partial(front.tokenizer.decode, self.tokens, front.tokenizer.special_ids)
        return {"prompt": await front.run(decode, size=len(self.tokens))}
