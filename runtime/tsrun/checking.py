"""What a request asks for that can not be: the same for all of its life, so it is refused at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tsrun.artifact import Manifest
from tsrun.errors import RequestError
from tsrun.generation import NO_EMBEDDINGS, NO_TOKENS, EmbeddingRequest, GenerationRequest


@dataclass(frozen=True, slots=True)
class Checking:
    """max_context: tokens of a sequence; has_all_rows: a step may give the logits of several rows of a sequence."""

    manifest: Manifest
    max_context: int
    has_all_rows: bool
    has_tokenizer: bool

    @property
    def longest(self) -> int:
        """Tokens of a prompt and its answer. That of an embedding is one that takes no room."""
        return self.max_context + (self.manifest.gives == "embeddings")

    def checked(self, where: str, request: GenerationRequest | EmbeddingRequest) -> tuple[GenerationRequest, int]:
        """What steps are to make of it, and its most tokens. RequestError where it can never run; `where` says which it is."""
        gives = self.manifest.gives
        if isinstance(request, EmbeddingRequest) != (gives == "embeddings"):
            raise RequestError(where, *(NO_EMBEDDINGS if isinstance(request, EmbeddingRequest) else NO_TOKENS))
        if isinstance(request, EmbeddingRequest):
            request = request.as_generation
        if not request.prompt:
            raise RequestError(where, "the prompt is empty", "give at least one token")
        prompt = np.asarray(request.prompt, dtype=np.int64)
        vocabulary = self.manifest.vocabulary
        outside = prompt[(prompt < 0) | (prompt >= vocabulary)]
        if outside.size:
            raise RequestError(where, f"token {outside[0]} is outside of the vocabulary of {vocabulary}")
        room = self.longest - len(prompt)
        if room < 1:
            what = f"the prompt has {len(prompt)} tokens, the longest context is {self.max_context}"
            raise RequestError(where, what, "shorten it, or give more with --max-context, --num-pages or --cache-bytes")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise RequestError("max-tokens", f"got {request.max_tokens}", "give a positive count")
        for token in request.sampling.logit_bias:
            if not 0 <= token < vocabulary:
                raise RequestError("logit-bias", f"token {token} is outside of the vocabulary of {vocabulary}", "leave it out")
        if gives == "tokens" and request.needs_logits:
            what = "the model picks its tokens greedily, and gives no logits to choose by"
            raise RequestError(request.needs_logits[0], what, "leave it out, or use a model whose entry returns logits")
        if request.prompt_logprobs is not None and not self.has_all_rows:
            what = "groups of ranks keep sequences of their own, and give the logits of one row of each"
            raise RequestError("prompt-logprobs", what, "leave it out, or use an artifact without `paged@` caches")
        if request.deadline_seconds is not None and not request.deadline_seconds > 0:
            raise RequestError("deadline-seconds", f"got {request.deadline_seconds}", "give a positive number")
        if request.stop and not self.has_tokenizer:
            raise RequestError("stop", "the artifact has no tokenizer, so there is no text to stop at", "leave it out")
        return request, room if request.max_tokens is None else min(request.max_tokens, room)
