"""What drafts gain: tokens a second with `--speculate lookup`, `mtp` or `draft` over those with `off`, on a file that is repeated with
small changes and on free text.

usage: python benchmarks/speculation.py NAME.tsa [--case edit,prose,sampled,code,code-sampled] [--source lookup,mtp,mtp+2,draft]
                                        [--draft OTHER.tsa] [--users 1] [--rounds 3] [--tokens 1200] [--threads 2]

edit: a module of Python's standard library of some 2,000 tokens, and then its first lines again with a name changed, which the model goes
on from, greedily: what comes is the model's own, and how much of the file it has again is said beside the figures. prose: the beginnings of
texts, greedily. sampled: the same at temperature 1, where little repeats itself. code, code-sampled: pieces of modules instead, for a model
of code. mtp: of an artifact with an entry for drafts; draft: by the artifact of `--draft`; mtp+2, draft+2: with `--branches 2`; tokens a
step say how many came of one. Each round runs all engines, in turns, with a salt of its own, so that nothing of the rounds before is found;
tokens must be the same. Decoding is from the first token to the last.
"""

from __future__ import annotations

import argparse
import calendar
import difflib
import fractions
import inspect
import re
import statistics
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tsrun.engine import Engine
from tsrun.generation import GenerationRequest
from tsrun.limits import LimitOptions
from tsrun.sampler import Sampling

FILE_TOKENS = 2000
BEGUN_LINES = 40
PROSE = (
    "The lighthouse keeper had not spoken to anyone since the autumn storms began, and",
    "Most people believe that bread rises because of the yeast alone. In truth,",
    "In the spring of 1931 a young engineer arrived in the valley with a suitcase and",
    "There are three reasons why cities grow along rivers. The first is",
)


MODULES = (calendar, difflib, fractions, statistics)


@dataclass
class Run:
    """What an engine made of requests that ran together."""

    tokens: list[list[int]]
    seconds: float
    drafted: int
    accepted: int
    events: int  # with tokens: one a request and step

    @property
    def rate(self) -> float:
        return sum(len(each) - 1 for each in self.tokens) / self.seconds


def run(engine: Engine, requests: Sequence[GenerationRequest]) -> Run:
    tokens: dict[int, list[int]] = {engine.submit(request): [] for request in requests}
    drafted = accepted = events = 0
    began = 0.0
    for event in engine.events():
        tokens[event.request].extend(event.token_ids)
        drafted, accepted, events = drafted + event.drafted, accepted + event.accepted, events + bool(event.token_ids)
        if not began and all(tokens.values()):
            began = time.perf_counter()
    return Run(list(tokens.values()), time.perf_counter() - began, drafted, accepted, events)


def edit(engine: Engine) -> tuple[list[int], str]:
    """The prompt, and what the answer is expected to begin with: the rest of the file with its change."""
    assert engine.tokenizer is not None
    lines = inspect.getsource(textwrap).splitlines(keepends=True)
    while len(engine.tokenizer.encode("".join(lines))) > FILE_TOKENS:
        lines.pop()
    changed = [re.sub(r"\bwidth\b", "columns", line) for line in lines]
    prompt = f"# wrap.py, before\n{''.join(lines)}\n\n# wrap.py, after `width` was renamed to `columns`\n{''.join(changed[:BEGUN_LINES])}"
    return engine.tokenizer.encode(prompt), "".join(changed[BEGUN_LINES:])


def requests_of(case: str, engine: Engine, users: int, num_tokens: int) -> list[GenerationRequest]:
    assert engine.tokenizer is not None
    if case == "edit":
        prompt, _ = edit(engine)
        return [GenerationRequest([*prompt], num_tokens, ignore_eos=True) for _ in range(users)]
    sources = [inspect.getsource(module) for module in MODULES]
    texts = [text[len(text) // 2 :][:600] for text in sources] if case.startswith("code") else PROSE
    prompts = [engine.tokenizer.encode(text) for text in texts]
    samplings = [Sampling(temperature=1.0, seed=i) if case.endswith("sampled") else Sampling() for i in range(max(users, len(prompts)))]
    return [GenerationRequest(prompts[i % len(prompts)], num_tokens // 4, one, ignore_eos=True) for i, one in enumerate(samplings)]


def measure(case: str, engines: dict[str, Engine], users: int, num_tokens: int, rounds: int) -> None:
    requests = requests_of(case, engines["off"], users, num_tokens)
    batches = [requests[at : at + users] for at in range(0, len(requests), users)]
    sources = [name for name in engines if name != "off"]
    rates: list[dict[str, float]] = []
    for number in range(rounds):
        order = list(engines) if number % 2 else list(reversed(engines))
        salted = [[replace(request, cache_salt=f"{case} {number}") for request in batch] for batch in batches]  # nothing is known before
        found = {name: [run(engines[name], batch) for batch in salted] for name in order}
        for name in sources:
            if [one.tokens for one in found[name]] != [one.tokens for one in found["off"]]:
                raise SystemExit(f"{case}: the tokens with {name} differ")
        rates.append({name: statistics.harmonic_mean([one.rate for one in runs]) for name, runs in found.items()})
    off = statistics.median(rate["off"] for rate in rates)
    for name in sources:
        ratios = [rate[name] / rate["off"] for rate in rates]
        drafted, accepted, events = (sum(each) for each in zip(*((r.drafted, r.accepted, r.events) for r in found[name]), strict=True))
        made = sum(len(tokens) for one in found[name] for tokens in one.tokens)
        cells = [
            f"{case}, {users} user{'s' * (users > 1)}",
            f"{off:.1f}",
            name,
            f"{statistics.median(rate[name] for rate in rates):.1f}",
            f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{accepted:,} of {drafted:,}",
            f"{made / events:.2f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    if case == "edit":
        tokenizer = engines["off"].tokenizer
        assert tokenizer is not None
        _, expected = edit(engines["off"])
        answer = tokenizer.decode(found["off"][0].tokens[0])
        kept = difflib.SequenceMatcher(None, expected.splitlines(), answer.splitlines()).get_matching_blocks()
        lines = min(len(expected.splitlines()), len(answer.splitlines()))
        print(f"  of the answer's first {lines} lines {sum(block.size for block in kept)} are the file's, with its change")


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").split("\n\n")[0].split()))
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--case", default="edit,prose,sampled")
    parser.add_argument("--source", default="lookup")
    parser.add_argument("--draft")
    for name, value in (("users", 1), ("rounds", 3), ("tokens", 1200), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    engines = {}
    for name in ("off", *given.source.split(",")):
        source, _, branches = name.partition("+")
        draft = given.draft if source == "draft" else None
        options = LimitOptions(speculate=source, draft=draft, prefix_cache=False, max_context=8192)
        if branches:
            options = replace(options, branches=int(branches))
        engines[name] = Engine(given.artifact, options, threads=given.threads)
    print("| case | off, tokens/s | drafts | tokens/s | of off | drafted tokens that came | tokens a step |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for case in given.case.split(","):
        measure(case, engines, given.users, given.tokens, given.rounds)
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
