"""tsrun in process, opened as its command line opens it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from cpu_driver import Setup, Token

from tskernels.waiting import spin_briefly

_WORDS = {"on": True, "true": True, "off": False, "false": False}


def version() -> str:
    return installed("tsc-llm")


class Engine:
    def __init__(self, setup: Setup) -> None:
        spin_briefly()  # as the command does, before torch is loaded
        from tsrun.engine import Engine as Runtime
        from tsrun.generation import GenerationRequest
        from tsrun.limits import LimitOptions

        sizes: dict[str, Any] = {"max_sequences": setup.sequences, "max_context": setup.context}
        known = [option.name for option in fields(LimitOptions)]
        for name, word in setup.options.items():
            if name not in known:
                raise ValueError(f"LimitOptions has no `{name}`; there are {', '.join(known)}")
            sizes[name] = parsed(word)
        self.request = GenerationRequest
        self.engine = Runtime(Path(setup.model), LimitOptions(**sizes), threads=setup.threads)

    def encode(self, text: str) -> list[int]:
        assert self.engine.tokenizer is not None
        return self.engine.tokenizer.encode(text)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Token]:
        found = []
        start = time.perf_counter()
        numbers = {self.engine.submit(self.request(prompt, new_tokens, ignore_eos=True)): n for n, prompt in enumerate(prompts)}
        for event in self.engine.events():
            now = time.perf_counter() - start
            found += [Token(now, numbers[event.request], token) for token in event.token_ids]
        return found


def parsed(word: str) -> bool | int | str:
    """The value of a `--ours NAME=WORD`: on and off, a number, or a word as it is."""
    if word in _WORDS:
        return _WORDS[word]
    return int(word) if word.lstrip("-").isdigit() else word
