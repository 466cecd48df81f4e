"""Several ranks, each a process of its own, against one: the same tokens in f32, and in bf16 up to near ties."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.models.running import Trace, compiled, reference_logits, run, run_for_tokens
from tests.models.tiny import BY_NAME, TinyModels, prompt
from tests.segments import left_behind, segments

from tsc.request import Cache
from tskernels import simd
from tsrun.engine import Engine
from tsrun.errors import RankError, RequestError
from tsrun.generation import GenerationRequest
from tsrun.limits import LimitOptions
from tsrun.output import Output
from tsrun.program import Program, read_program
from tsrun.sampler import Sampling
from tsrun.simd_program import SimdPrograms

DENSE = ["llama", "qwen3", "gemma3"]
MIXTURES = ["qwen3_moe", "deepseek_v3", "qwen3_next"]
"""In bf16 another rounding may send a token to another expert, which no bound on rounding covers."""
FOUR = pytest.mark.slow
"""Four processes on two cores."""
RANKS = [2, pytest.param(4, marks=FOUR)]
SEVERAL = [*((name, 2) for name in DENSE + MIXTURES), *(pytest.param(name, 4, marks=FOUR) for name in ("gemma3", "deepseek_v3"))]
SEVERAL_DENSE = [*((name, 2) for name in DENSE), pytest.param("gemma3", 4, marks=FOUR)]
"""Four of what is hardest to share out: more ranks than heads of keys, and experts."""
PROMPTS = [prompt(length, seed=length) for length in (1, 9, 22)]
TOKENS = 40
UNIT_ROUNDOFF = 2.0**-8
"""Half of the distance of two neighbouring bf16 numbers, relative to them."""

Run = Callable[[str, int, str], list[Trace]]
INT8 = "f32/int8"
"""A model in f32 with its cache in int8."""


@pytest.fixture(scope="module")
def traces(tiny: TinyModels) -> Run:
    """All prompts as one batch, each model on each number of ranks once."""
    done: dict[tuple[str, int, str], list[Trace]] = {}

    def traces_of(name: str, tp: int, dtype: str) -> list[Trace]:
        key = (name, tp, dtype)
        if key not in done:
            options = LimitOptions(num_pages=64, page_size=8, max_step_tokens=24)
            path = tiny.artifact(BY_NAME[name], tp=tp, dtype=dtype.removesuffix("/int8"), cache="int8" if dtype == INT8 else "dtype")
            done[key] = run(path, PROMPTS, TOKENS, options, chunks=False)
        return done[key]

    return traces_of


def rounding(name: str) -> float:
    """How far bf16 may move a logit, relative to the largest: one unit for each sum that several ranks round otherwise than one.

    These are the embedding's, two a layer, and the logits themselves.
    """
    layers: int = BY_NAME[name].config.num_hidden_layers
    return (2 * layers + 2) * UNIT_ROUNDOFF


@pytest.mark.parametrize(("name", "tp"), SEVERAL)
def test_ranks_make_the_tokens_of_one_in_f32(name: str, tp: int, traces: Run) -> None:
    one, several = traces(name, 1, "f32"), traces(name, tp, "f32")
    assert [trace.tokens for trace in several] == [trace.tokens for trace in one]
    assert [len(trace.tokens) for trace in one] == [TOKENS] * len(PROMPTS)


@pytest.mark.parametrize(("name", "tp"), SEVERAL_DENSE)
def test_ranks_with_an_int8_cache_make_the_tokens_of_one(name: str, tp: int, traces: Run) -> None:
    """Heads are whole on a rank, and so are the vectors that are rounded."""
    one, several = traces(name, 1, INT8), traces(name, tp, INT8)
    assert [trace.tokens for trace in several] == [trace.tokens for trace in one]
    assert any(not torch.equal(a, b) for a, b in zip(one[0].sampled, traces(name, 1, "f32")[0].sampled, strict=True))


@pytest.mark.parametrize(("name", "tp"), SEVERAL_DENSE)
def test_ranks_part_from_one_in_bf16_only_at_near_ties(name: str, tp: int, traces: Run) -> None:
    moved = []
    for number, (one, several) in enumerate(zip(traces(name, 1, "bf16"), traces(name, tp, "bf16"), strict=True)):
        pairs = zip(one.tokens, several.tokens, strict=True)
        parting = next((i for i, (a, b) in enumerate(pairs) if a != b), TOKENS)
        for a, b in list(zip(one.sampled, several.sampled, strict=True))[: parting + 1]:  # both follow the same tokens
            moved.append(float((a - b).abs().max() / a.abs().max()))
        if parting == TOKENS:
            continue
        logits = one.sampled[parting]
        gap = float(logits[one.tokens[parting]] - logits[several.tokens[parting]])
        bound = 2 * rounding(name) * float(logits.abs().max())  # one of the two may rise while the other falls
        print(f"prompt {number} parts at token {parting}: {gap:.3f} between the two logits, explained up to {bound:.3f}")
        assert gap <= bound
    print(f"largest logit moved by {statistics.median(moved):.4f} (median), {max(moved):.4f} (most), of {rounding(name):.4f}")
    assert statistics.median(moved) <= rounding(name)


@pytest.mark.parametrize(("name", "tp"), SEVERAL)
def test_ranks_are_as_near_to_the_model_as_one_in_bf16(name: str, tp: int, tiny: TinyModels, traces: Run) -> None:
    model = tiny.model(BY_NAME[name])

    def error(found: list[Trace]) -> float:
        squares = []
        for trace in found:
            expected = reference_logits(model, trace.prompt + trace.tokens[:-1], TOKENS)
            squares += [float((a - b).square().mean()) for a, b in zip(trace.sampled, expected, strict=True)]
        return math.sqrt(statistics.fmean(squares))

    one, several = error(traces(name, 1, "bf16")), error(traces(name, tp, "bf16"))
    print(f"{name}: root mean square error of {several:.4f} on {tp} ranks, {one:.4f} on one")
    assert several <= 1.5 * one


@pytest.mark.parametrize("tp", RANKS)
def test_ranks_that_share_out_the_tokens_make_the_tokens_of_one(tp: int, tiny: TinyModels, tmp_path: Path, traces: Run) -> None:
    """Steps of 1 to 24 tokens are padded to a multiple of the ranks; the padding is nobody's."""
    model = Path(__file__).parents[2] / "examples/token_sharded/token_sharded.ts"
    path = compiled(tiny.checkpoint(BY_NAME["llama"]), tmp_path / "shared.tsa", tp=tp, model=model)
    options = LimitOptions(num_pages=64, page_size=8, max_step_tokens=23)
    assert read_program(path / "program.json").paddings[0] == (1, tp)
    assert [trace.tokens for trace in run(path, PROMPTS, TOKENS, options)] == [trace.tokens for trace in traces("llama", 1, "f32")]


@pytest.fixture
def steps_in_cpp(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The plans of the steps that rank 0 runs as programs in C++."""
    found: list[int] = []
    run_program = SimdPrograms.run

    def spying(self: SimdPrograms, plan: int, T: int, S: int, P: int) -> Output:
        found.append(plan)
        return run_program(self, plan, T, S, P)

    monkeypatch.setattr(SimdPrograms, "run", spying)
    return found


@pytest.fixture
def no_shared_memory() -> Iterator[None]:
    """No file may be as large as a segment is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_dense(tiny: TinyModels, name: str, tp: int) -> list[list[int]]:
    options = LimitOptions(num_pages=64, page_size=8, max_step_tokens=24, speculate="off")
    return [trace.tokens for trace in run(tiny.artifact(BY_NAME[name], tp=tp, dtype="f32"), PROMPTS, TOKENS, options, chunks=False)]


@pytest.mark.skipif(not simd.is_available(), reason="needs the native kernels")
@pytest.mark.parametrize("name", DENSE)
def test_ranks_of_a_host_run_programs_in_cpp(name: str, tiny: TinyModels, traces: Run, steps_in_cpp: list[int]) -> None:
    before, expected = segments(), [trace.tokens for trace in traces(name, 1, "f32")]
    steps_in_cpp.clear()
    assert run_dense(tiny, name, 2) == expected
    assert len(steps_in_cpp) > TOKENS
    assert not left_behind(before)


@pytest.mark.usefixtures("no_shared_memory")
def test_ranks_without_shared_memory_make_the_same_tokens_over_gloo(tiny: TinyModels, traces: Run, steps_in_cpp: list[int]) -> None:
    expected = [trace.tokens for trace in traces("llama", 1, "f32")]
    steps_in_cpp.clear()
    assert run_dense(tiny, "llama", 2) == expected
    assert not steps_in_cpp


@pytest.mark.parametrize("depth", [1, 2])
def test_a_rank_that_is_killed_within_a_step_is_told_in_one_line_and_leaves_nothing(depth: int, tiny: TinyModels) -> None:
    before = segments()
    with Engine(tiny.artifact(BY_NAME["llama"], tp=4), LimitOptions(num_pages=64, page_size=8, depth=depth)) as engine:
        engine.submit(GenerationRequest([1, 2, 3], TOKENS, ignore_eos=True))
        engine.step()
        victim = engine.worker_pids()[1]
        os.kill(victim, signal.SIGSTOP)  # so that the others are waiting for it, in a collective
        threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
        begin = time.monotonic()
        with pytest.raises(RankError, match=r"^rank 2: its process ended while the engine needed it \(killed by SIGKILL\)") as caught:
            list(engine.events())
        assert "\n" not in caught.value.line
        assert time.monotonic() - begin < 10.0
    assert not left_behind(before)


LINKS = "launch_us = 0.01\nhop_us = 0.01\ngb_per_s = 100.0\nmemory_gb_per_s = 1.0\ntflops = 1.0\n"
"""Links that cost nearly nothing beside the ranks' own memory: sharing out the rows of a norm pays from a few tokens on."""


@pytest.mark.parametrize(
    ("name", "mesh"),
    [("llama", {"tp": 2}), pytest.param("gemma3", {"tp": 4}, marks=FOUR), pytest.param("deepseek_v3", {"dp": 2, "tp": 2}, marks=FOUR)],
    ids=str,
)
def test_steps_of_each_size_run_the_plan_for_it(
    name: str, mesh: dict[str, int], tiny: TinyModels, tmp_path: Path, traces: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One artifact has plans for small steps and large ones, which read the same weights and caches."""
    links = tmp_path / "links.toml"
    links.write_text(LINKS)
    path = compiled(tiny.checkpoint(BY_NAME[name]), tmp_path / "plans.tsa", mesh=mesh, topology=links)
    program = read_program(path / "program.json")
    assert len(program.plans) > 1
    assert len({plan.token_multiple for plan in program.plans}) > 1
    shown = json.loads((path / "plan.json").read_text())["plans"]
    assert [plan["first"] for plan in shown] == [plan.tokens for plan in program.plans]
    options, used = LimitOptions(num_pages=64, page_size=8, max_step_tokens=24), set()
    plan_for = Program.plan_for

    def spying(self: Program, tokens: int, *, drafting: bool = False) -> int:
        found = plan_for(self, tokens, drafting=drafting)
        used.add((len(self.plans), self.plans[found].entry))
        return found

    expected = [trace.tokens for trace in traces(name, 1, "f32")]
    alone = compiled(tiny.checkpoint(BY_NAME[name]), tmp_path / "alone.tsa")
    monkeypatch.setattr(Program, "plan_for", spying)
    assert [trace.tokens for trace in run(path, PROMPTS, TOKENS, options)] == expected
    long, room = [prompt(70, seed=70)], LimitOptions(num_pages=64, page_size=8, max_step_tokens=80)
    assert [t.tokens for t in run(path, long, TOKENS, room)] == [t.tokens for t in run(alone, long, TOKENS, room)]
    assert len({entry for plans, entry in used if plans > 1}) > 1


@pytest.mark.parametrize("mesh", [{"dp": 2}, pytest.param({"dp": 2, "tp": 2}, marks=FOUR), pytest.param({"dp": 4}, marks=FOUR)], ids=str)
@pytest.mark.parametrize(
    ("name", "example", "cache"), [("llama", "data_parallel", "dtype"), ("llama", "data_parallel", "int8"), ("deepseek_v3", None, "dtype")]
)
def test_ranks_with_sequences_of_their_own_make_the_tokens_of_one(
    name: str, example: str | None, cache: Cache, mesh: dict[str, int], tiny: TinyModels, tmp_path: Path, traces: Run
) -> None:
    """Three sequences over two groups, and over four: one of a group may wait for rows or pages while another's goes on."""
    model = Path(__file__).parents[2] / f"examples/{example}/{example}.ts" if example else None
    path = compiled(tiny.checkpoint(BY_NAME[name]), tmp_path / "parallel.tsa", mesh=mesh, model=model, cache=cache)
    program = read_program(path / "program.json")
    assert program.sequence_groups == mesh["dp"]
    expected = [trace.tokens for trace in traces(name, 1, INT8 if cache == "int8" else "f32")]
    for options in (LimitOptions(num_pages=64, page_size=8, max_step_tokens=24), LimitOptions(num_pages=8, page_size=8, max_step_tokens=5)):
        assert [trace.tokens for trace in run(path, PROMPTS, TOKENS, options)] == expected


@pytest.mark.parametrize("tp", [1, *RANKS])
def test_an_entry_that_gives_tokens_makes_those_of_the_logits(tp: int, tiny: TinyModels, tmp_path: Path, traces: Run) -> None:
    model = Path(__file__).parents[2] / "examples/greedy/greedy.ts"
    path = compiled(tiny.checkpoint(BY_NAME["llama"]), tmp_path / "greedy.tsa", tp=tp, model=model)
    options = LimitOptions(num_pages=64, page_size=8, max_step_tokens=24)
    assert run_for_tokens(path, PROMPTS, TOKENS, options) == [trace.tokens for trace in traces("llama", 1, "f32")]


def test_an_entry_that_gives_tokens_cannot_be_sampled_from(tiny: TinyModels, tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "examples/greedy/greedy.ts"
    path = compiled(tiny.checkpoint(BY_NAME["llama"]), tmp_path / "greedy.tsa", model=model)
    with Engine(path) as engine, pytest.raises(RequestError, match="picks its tokens greedily"):
        engine.submit(GenerationRequest([1, 2], sampling=Sampling(temperature=0.5)))
    with pytest.raises(RequestError, match="no logits to observe"):
        Engine(path, observer=lambda step: None)
