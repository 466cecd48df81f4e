"""Compiles a checkpoint and runs it through the engine, keeping the logits of every step.

Dimensions: N tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsc.driver import compile_artifact
from tsc.request import Cache, Quantize, Request
from tsrun.engine import Engine
from tsrun.generation import GenerationRequest, StepLogits
from tsrun.limits import LimitOptions


def compiled(
    checkpoint: Path,
    path: Path,
    *,
    tp: int = 1,
    dtype: str = "f32",
    model: Path | None = None,
    mesh: dict[str, int] | None = None,
    topology: Path | None = None,
    quantize: Quantize = "none",
    target: str = "cpu",
    cache: Cache = "dtype",
    entry: str | None = None,
    context: int | None = None,
) -> Path:
    """quantize: none, since transformers computes with what a GGUF's blocks come to."""
    links = None if topology is None else str(topology)
    request = Request(model, checkpoint, None, mesh or {"tp": tp}, dtype, target, links, quantize=quantize, cache=cache, entry=entry)
    request = replace(request, context=context)
    compile_artifact(request, path, lambda stage, done, total: None)
    return path


@dataclass
class Trace:
    """What became of a prompt: the tokens made, the text, and by position the logits [V] that follow the token there."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logits: dict[int, Tensor] = field(default_factory=dict)

    @property
    def sampled(self) -> list[Tensor]:
        """The logits that each of the tokens was chosen from."""
        return [self.logits[len(self.prompt) - 1 + i] for i in range(len(self.tokens))]


def run(
    path: Path, prompts: Sequence[Sequence[int]], max_tokens: int, options: LimitOptions | None = None, *, chunks: bool = True
) -> list[Trace]:
    """Greedy continuations of all prompts as one batch. `chunks` keeps the logits after prefill chunks that end no prompt, too."""
    traces = [Trace(list(prompt)) for prompt in prompts]

    def observe(step: StepLogits) -> None:
        for s, (request, position) in enumerate(zip(step.requests.tolist(), step.positions.tolist(), strict=True)):
            if chunks or step.samples[s]:
                traces[request].logits[position] = torch.from_numpy(step.logits[s].copy())

    with Engine(path, options or LimitOptions(num_pages=256), observer=observe) as engine:
        for trace in traces:
            engine.submit(GenerationRequest(trace.prompt, max_tokens, ignore_eos=True))
        for event in engine.events():
            traces[event.request].tokens.extend(event.token_ids)
            traces[event.request].text += event.text
    return traces


def run_for_tokens(path: Path, prompts: Sequence[Sequence[int]], max_tokens: int, options: LimitOptions) -> list[list[int]]:
    """Greedy continuations by a program that may give tokens and no logits."""
    made: list[list[int]] = [[] for _ in prompts]
    with Engine(path, options) as engine:
        for prompt in prompts:
            engine.submit(GenerationRequest(prompt, max_tokens, ignore_eos=True))
        for event in engine.events():
            made[event.request].extend(event.token_ids)
    return made


def reference_logits(model: Any, ids: Sequence[int], last: int = 0) -> Tensor:
    """[N, V] of transformers, one pass over the whole sequence; only the `last` rows when given."""
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([list(ids)]), use_cache=False, logits_to_keep=last).logits[0].float()
    return logits


def largest_difference(model: Any, traces: Sequence[Trace], *, whole: bool = True) -> float:
    """Over every position that was kept; fails where transformers would have chosen another token."""
    return max((difference for _, _, difference in differences(model, traces, whole=whole)), default=0.0)


def differences(model: Any, traces: Sequence[Trace], *, whole: bool = True) -> Iterator[tuple[Trace, int, float]]:
    """The largest at every position that was kept; fails where transformers would have chosen another token.

    transformers sees our tokens at once: when its choice after each prefix of them is our next token, its own greedy
    decoding makes the same ones.
    """
    known: list[int] = []
    rows = torch.empty(0)
    for trace in sorted(traces, key=lambda t: -len(t.prompt) - len(t.tokens)):
        ids = trace.prompt + trace.tokens
        first = 0 if whole else len(trace.prompt) - 1
        if not whole or known[: len(ids) - 1] != ids[:-1]:  # what a longer one begins with is among its rows
            known, rows = ids[:-1], reference_logits(model, ids[:-1], 0 if whole else len(trace.tokens))
        expected = rows[: len(ids) - 1 - first]
        assert trace.tokens == expected[len(trace.prompt) - 1 - first :].argmax(-1).tolist()
        assert set(range(len(trace.prompt) - 1, len(ids) - 1)) <= set(trace.logits)
        for position, logits in trace.logits.items():
            assert logits.isfinite().all()
            yield trace, position, float((logits - expected[position - first]).abs().max())
