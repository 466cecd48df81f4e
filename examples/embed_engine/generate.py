"""Run two prompts as one batch in this process, and print tokens as they come.

usage: python examples/embed_engine/generate.py NAME.tsa "First prompt" "Second prompt"
"""

from __future__ import annotations

import sys
from pathlib import Path

from tsrun.engine import Engine
from tsrun.generation import GenerationRequest


def main(path: str, *prompts: str) -> None:
    with Engine(Path(path)) as engine:
        tokenizer = engine.tokenizer
        if tokenizer is None:
            sys.exit(f"{path} has no tokenizer: compile it from a checkpoint that does")
        names = {engine.submit(GenerationRequest(tokenizer.encode(p), max_tokens=24)): p for p in prompts}
        for event in engine.events():
            if event.text:
                print(f"{names[event.request]!r} ... {event.text!r}")
            if event.finish_reason is not None:
                print(f"{names[event.request]!r} ended: {event.finish_reason}")


if __name__ == "__main__":
    main(*sys.argv[1:])
