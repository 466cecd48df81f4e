"""Grammars of llguidance over a model's tokens, within limits."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from tsrun.tokenizer import Tokenizer

LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)  # 100 MB; fuel and sizes are the library's own
"""Of what a grammar may take, to compile and in a step."""


def grammar_tokens(tokenizer: Tokenizer, vocabulary: int, eos_ids: Sequence[int]) -> LLTokenizer:
    """The tokens of a model that has `vocabulary` of them, as llguidance wants them."""
    known = tokenizer.token_bytes()
    tokens = [*known.of[:vocabulary], *[b""] * (vocabulary - len(known.of))]

    class Words(SimpleNamespace):
        def __call__(self, text: bytes) -> list[int]:
            return tokenizer.encode_part(text.decode())

    special = sorted({index for index in known.special if index < vocabulary} | set(eos_ids))
    words = Words(eos_token_id=eos_ids[0], bos_token_id=None, tokens=tokens, special_token_ids=special)
    return LLTokenizer(TokenizerWrapper(words), eos_token=list(eos_ids))


def compiled(tokens: LLTokenizer, grammar: str) -> LLMatcher:
    """Without the interpreter's lock. It says itself whether it is one."""
    return LLMatcher(tokens, grammar, log_level=0, limits=LIMITS)
