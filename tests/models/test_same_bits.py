"""A sequence's logits have the same bits alone and in company, in chunks of any size, on any number of threads, cached or not.

Bits, not tolerances: what a request gets must not depend on who else is served. On this machine's kernels, through the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.models.tiny import BY_NAME, TinyModels, prompt
from torch import Tensor

from tsc.request import Cache
from tsrun.engine import Engine
from tsrun.generation import GenerationRequest, StepLogits
from tsrun.limits import LimitOptions

MODELS = ["llama", "qwen3", "gemma3", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_next"]
"""gemma3 has a window that every prompt here outgrows; the last four have mixtures of experts, and of them one latent attention, one sinks,
one states."""
DTYPES = ["f32", "bf16", "bf16/int8"]
"""Of the model, and of its cache where that is another; a latent cache is never int8."""
FP8 = [(model, "bf16/fp8") for model in ("deepseek_v3", "gpt_oss")]
"""A latent cache, and one of heads with a window and sinks."""
OTHERS = [("olmo2", "bf16"), ("glm4_moe", "f32"), ("phi3", "f32")]
"""For what they have that none of those has: norms of whole rows; biases, and heads of which a part turns; longrope."""
LENGTH, TOKENS = 45, 5
ALONE = LimitOptions(page_size=16, num_pages=64, max_sequences=1, max_step_tokens=512, prefix_cache=False, depth=1)


@dataclass(frozen=True)
class Company:
    """Who shares the steps: the length of each other prompt, and how many of its tokens are the first ones of ours."""

    lengths: tuple[int, ...] = ()
    shared: int = 0
    place: int = 0

    def prompts(self, ours: Sequence[int]) -> list[list[int]]:
        others = [[*ours[: self.shared], *prompt(length, seed=100 + i)] for i, length in enumerate(self.lengths)]
        place = self.place % (len(others) + 1)
        return [*others[:place], list(ours), *others[place:]]


def logits_of(
    tiny: TinyModels,
    model: str,
    dtype: str,
    ours: Sequence[int],
    options: LimitOptions,
    *,
    company: Company | None = None,
    threads: int = 1,
) -> Tensor:
    """[TOKENS, V]: what each of our tokens was chosen from."""
    company = company or Company()
    with Bits(tiny, model, dtype, options, threads) as engine:
        return engine.logits(company.prompts(ours), company.place % (len(company.lengths) + 1))


class Bits:
    """An engine that keeps the logits of every generated position."""

    def __init__(self, tiny: TinyModels, model: str, dtype: str, options: LimitOptions, threads: int) -> None:
        self._kept: dict[int, dict[int, Tensor]] = {}
        self.cached = 0
        kind, _, cache = dtype.partition("/")
        artifact = tiny.artifact(BY_NAME[model], dtype=kind, cache=cast(Cache, cache or "dtype"))
        self._engine = Engine(artifact, options, threads=threads, observer=self._observe)

    def __enter__(self) -> Bits:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def _observe(self, step: StepLogits) -> None:
        for s, (request, position) in enumerate(zip(step.requests.tolist(), step.positions.tolist(), strict=True)):
            if step.samples[s]:
                self._kept.setdefault(request, {})[position] = torch.from_numpy(step.logits[s].copy())

    def logits(self, prompts: Sequence[Sequence[int]], place: int) -> Tensor:
        """Of the prompt at `place`; the others run beside it, some to other ends."""
        requests = [
            self._engine.submit(GenerationRequest(ids, TOKENS if i == place else 1 + (3 * i) % (2 * TOKENS), ignore_eos=True))
            for i, ids in enumerate(prompts)
        ]
        ours = requests[place]
        for event in self._engine.events():
            if event.request == ours:
                self.cached = event.cached_tokens
        first = len(prompts[place]) - 1
        return torch.stack([self._kept[ours][first + i] for i in range(TOKENS)])


class Alone:
    """Logits of prompts alone, in one chunk, by one thread, without a prefix cache: each once."""

    def __init__(self, tiny: TinyModels) -> None:
        self._tiny = tiny
        self._found: dict[tuple[str, str, int, int], Tensor] = {}

    def __call__(self, model: str, dtype: str, length: int, seed: int) -> Tensor:
        key = model, dtype, length, seed
        if key not in self._found:
            self._found[key] = logits_of(self._tiny, model, dtype, prompt(length, seed), ALONE)
        return self._found[key]


@pytest.fixture(scope="module")
def alone(tiny: TinyModels) -> Alone:
    return Alone(tiny)


every_model = pytest.mark.parametrize(
    ("model", "dtype"), [*((m, d) for m in MODELS for d in DTYPES if (m, d) != ("deepseek_v3", "bf16/int8")), *FP8, *OTHERS]
)
company = st.builds(
    Company, st.lists(st.integers(1, 60), max_size=16).map(tuple), shared=st.sampled_from([0, 7, 20, LENGTH]), place=st.integers(0, 16)
)
options = st.builds(
    LimitOptions,
    page_size=st.sampled_from([1, 3, 8, 16]),
    num_pages=st.just(2000),
    max_sequences=st.sampled_from([1, 2, 5, 32]),
    max_step_tokens=st.one_of(st.integers(1, 48), st.sampled_from([64, 512])),
    depth=st.sampled_from([1, 2]),
    prefix_cache=st.booleans(),
    snapshot_tokens=st.sampled_from([1, 7, 16]),
)


def check(
    tiny: TinyModels, alone: Alone, model: str, dtype: str, length: int, options: LimitOptions, company: Company, threads: int
) -> None:
    options = replace(options, max_step_tokens=max(options.max_step_tokens, options.max_sequences))
    found = logits_of(tiny, model, dtype, prompt(length, 1), options, company=company, threads=threads)
    assert found.isfinite().all()
    assert torch.equal(found, alone(model, dtype, length, 1))


given_a_step = given(length=st.sampled_from([1, 6, LENGTH]), options=options, company=company, threads=st.sampled_from([1, 2]))
suppressed = [HealthCheck.function_scoped_fixture]


@every_model
@settings(deadline=None, max_examples=5, suppress_health_check=suppressed)
@given_a_step
def test_a_sequence_has_the_same_bits_in_any_company_and_in_chunks(
    tiny: TinyModels, alone: Alone, model: str, dtype: str, length: int, options: LimitOptions, company: Company, threads: int
) -> None:
    check(tiny, alone, model, dtype, length, options, company, threads)


@pytest.mark.slow
@every_model
@settings(deadline=None, max_examples=30, suppress_health_check=suppressed)
@given_a_step
def test_a_sequence_has_the_same_bits_in_much_company(
    tiny: TinyModels, alone: Alone, model: str, dtype: str, length: int, options: LimitOptions, company: Company, threads: int
) -> None:
    check(tiny, alone, model, dtype, length, options, company, threads)


@every_model
def test_every_size_of_chunk_gives_the_same_bits(tiny: TinyModels, alone: Alone, model: str, dtype: str) -> None:
    for chunk in (1, 2, 3, 4, 12, 13, 31, LENGTH - 1, LENGTH, 512):
        options = replace(ALONE, max_step_tokens=chunk)
        assert torch.equal(logits_of(tiny, model, dtype, prompt(LENGTH, 1), options), alone(model, dtype, LENGTH, 1)), chunk


@every_model
def test_a_prompt_found_in_the_prefix_cache_has_the_same_bits(tiny: TinyModels, alone: Alone, model: str, dtype: str) -> None:
    ours = prompt(LENGTH, 1)
    options = LimitOptions(page_size=4, num_pages=256, max_step_tokens=64, snapshot_tokens=8)
    with Bits(tiny, model, dtype, options, 2) as engine:
        first = engine.logits([ours], 0)
        assert engine.cached == 0
        again = engine.logits([ours], 0)
        assert 0 < engine.cached < LENGTH
        beside = engine.logits([prompt(30, 7), [*ours, 3, 4], ours, ours[:20]], 2)
        assert engine.cached > 0
    for found in (first, again, beside):
        assert torch.equal(found, alone(model, dtype, LENGTH, 1))


@every_model
def test_a_preempted_sequence_has_the_same_bits(tiny: TinyModels, alone: Alone, model: str, dtype: str) -> None:
    """With pages for less than all who run: some are computed again, in chunks of other sizes."""
    options = LimitOptions(page_size=4, num_pages=20, max_step_tokens=16, max_context=64)
    for place in (0, 3):
        company = Company((40, 21, 13), place=place)
        assert torch.equal(logits_of(tiny, model, dtype, prompt(LENGTH, 1), options, company=company), alone(model, dtype, LENGTH, 1))
