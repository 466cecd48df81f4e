"""What a constraint costs: decoded tokens per second with a JSON schema and without one, of the same artifact and engine.

usage: python benchmarks/constraints.py NAME.tsa [--sequences 1,8] [--tokens N] [--rounds N] [--markdown] [--json FILE]

Both take turns, round by round, from the same prompts and with the same number of tokens; the ratio is the median of the rounds' ratios,
and their range. A rate is of the tokens after each sequence's first. The schema is an array that is never long enough to end, of objects
with a text, a number and a list; what is free of it says something else, so that the two see different tokens. Greedy decoding reads only a
part of a screened head; under a constraint it does where the largest logit is allowed, and else the head runs again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tsrun.constraint import Constraint
from tsrun.engine import Engine
from tsrun.generation import GenerationRequest
from tsrun.sampler import Sampling

ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["small", "large", "old", "new"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMA = Constraint("json_schema", json.dumps({"type": "array", "items": ITEM, "minItems": 100_000}))
PROMPT = "Make up a long list of people. Write it as a JSON array of objects with name, age and tags."
SAMPLINGS = {"greedy": Sampling(), "temperature 1": Sampling(temperature=1.0, seed=1)}


@dataclass(frozen=True)
class Figure:
    """Tokens per second of all sequences, and the ratio: median, least and most."""

    sampling: str
    sequences: int
    free: float
    constrained: float
    ratio: tuple[float, float, float]


def rate(engine: Engine, prompt: list[int], sampling: Sampling, sequences: int, tokens: int, constraint: Constraint | None) -> float:
    for _ in range(sequences):
        engine.submit(GenerationRequest(prompt, tokens, sampling, ignore_eos=True, constraint=constraint))
    seen: dict[int, int] = {}
    begun = 0.0
    for event in engine.events():
        if event.error is not None:
            raise RuntimeError(event.error)
        seen[event.request] = seen.get(event.request, 0) + len(event.token_ids)
        if not begun and len(seen) == sequences:
            begun, first = time.perf_counter(), sum(seen.values())
    spent = time.perf_counter() - begun
    if sum(seen.values()) != sequences * tokens:
        raise RuntimeError(f"{sum(seen.values())} tokens instead of {sequences * tokens}")
    return (sum(seen.values()) - first) / spent


def figures(engine: Engine, sequences: list[int], tokens: int, rounds: int) -> list[Figure]:
    assert engine.tokenizer is not None
    prompt = engine.tokenizer.encode_chat([{"role": "user", "content": PROMPT}])
    engine.prepare(SCHEMA)
    found = []
    for count in sequences:
        for name, sampling in SAMPLINGS.items():
            pairs = []
            for _ in range(rounds + 1):
                pairs.append([rate(engine, prompt, sampling, count, tokens, constraint) for constraint in (None, SCHEMA)])
                print(".", end="", file=sys.stderr, flush=True)
            ratios = [constrained / free for free, constrained in pairs[1:]]
            free, constrained = (statistics.median(each) for each in zip(*pairs[1:], strict=True))
            found.append(Figure(name, count, free, constrained, (statistics.median(ratios), min(ratios), max(ratios))))
    print(file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--sequences", default="1,8", help="in a step, several after commas")
    parser.add_argument("--tokens", type=int, default=64, help="of each sequence")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with Engine(options.artifact) as engine:
        found = figures(engine, [int(count) for count in options.sequences.split(",")], options.tokens, options.rounds)
    line = "| {:<13} | {:>9} | {:>8} | {:>11} | {:<21} |" if options.markdown else "{:<13} {:>9} {:>8} {:>11}  {}"
    print(line.format("sampling", "sequences", "free", "constrained", "constrained to free"))
    if options.markdown:
        print("|---|---:|---:|---:|---|")
    for one in found:
        print(
            line.format(
                one.sampling, one.sequences, f"{one.free:.1f}", f"{one.constrained:.1f}", "{:.3f} ({:.3f} to {:.3f})".format(*one.ratio)
            )
        )
    if options.json:
        options.json.write_text(json.dumps([vars(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
