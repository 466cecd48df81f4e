"""The GPU executor's host logic, on a device that records what it is asked for and interprets it on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.gpu.interpreter import require
from tests.gpu.interpreting import Asked, InterpretingDevice
from tests.gpu.models import KIMI, LLAMA, GpuModels
from tests.models.running import run
from tests.models.tiny import Case, prompt

from tskernels.gpu.sizes import SMS, S, Stride, T, cdiv, to_json
from tsrun.engine import Engine
from tsrun.errors import ArtifactError
from tsrun.generation import GenerationRequest
from tsrun.gpu.buckets import LARGEST, bucket
from tsrun.gpu.device import TensorMap
from tsrun.gpu.kernels_file import (
    KERNELS,
    Argument,
    KernelsFile,
    Launch,
    Operand,
    Out,
    Plan,
    PreparedInput,
    Scalar,
    ScratchSpace,
    Variant,
    read_kernels,
)
from tsrun.gpu.kernels_file import TensorMap as MapArgument
from tsrun.gpu.launching import CallOnDevice, newest_of
from tsrun.limits import LimitOptions, Limits
from tsrun.page_copies import PageCopies
from tsrun.program import Cache, CallNode, Frame, Graph, Program, State
from tsrun.program import Plan as StepPlan
from tsrun.sampler import Sampling

require()

PROMPTS = [prompt(5), prompt(9, 1)]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> InterpretingDevice:
    found = InterpretingDevice()
    monkeypatch.setattr("tsrun.ranks.device_for", lambda target, chosen, rank: None if chosen == "cpu" else found)
    return found


def tokens(path: Path, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, **options: object) -> list[list[int]]:
    """Of each prompt the tokens that are made, nobody looking at logits."""
    made: list[list[int]] = [[] for _ in prompts]
    with Engine(path, LimitOptions(num_pages=256, speculate="off", **options)) as engine:  # type: ignore[arg-type]
        for given in prompts:
            engine.submit(GenerationRequest(list(given), count, sampling=sampling, ignore_eos=True))
        for event in engine.events():
            made[event.request].extend(event.token_ids)
    return made


def steps(asked: Sequence[Asked]) -> Iterator[list[tuple[str, int]]]:
    """What each step asked for, up to its mark, and how often in a row; waits are none of it."""
    step: list[str] = []
    for one in asked:
        step += [] if one.what == "wait" else [one.what]
        if one.what == "mark":
            yield [(what, len(list(group))) for what, group in groupby(step)]
            step = []


def test_greedy_tokens_are_those_of_the_cpu(gpu_models: GpuModels, device: InterpretingDevice) -> None:
    path = gpu_models.artifact(LLAMA, "sm_90a")
    wanted = tokens(path, PROMPTS, 4, Sampling(), target="cpu")
    assert tokens(path, PROMPTS, 4, Sampling()) == wanted
    shapes = list(steps(device.asked))
    assert shapes[0][0] == ("copy_in", 1), "one upload a step"
    assert shapes[0][-3:] == [("record", 1), ("copy_out", 1), ("mark", 1)]
    assert shapes[-1] == [("copy_in", 1), ("replay", 1), ("copy_out", 1), ("mark", 1)]
    ends = [a.what for a in device.asked if a.what in ("mark", "wait")]
    assert ends == ["mark", *["mark", "wait"] * (len(shapes) - 1), "wait"], "a step is asked for before the one before has ended"
    assert {a.num_bytes for a in device.asked if a.what == "copy_out"} == {4 * len(PROMPTS)}, "tokens, and no logits"
    assert max(a.num_bytes for a in device.asked if a.what == "copy_in") <= 4096, "of inputs what a step has, not all that may be"


def test_products_of_one_token_are_launched_and_those_of_many_are_torchs(gpu_models: GpuModels, device: InterpretingDevice) -> None:
    path = gpu_models.artifact(LLAMA, "sm_90a", "bf16")
    assert tokens(path, [prompt(20)], 3, Sampling()) == tokens(path, [prompt(20)], 3, Sampling(), target="cpu")
    launched = Counter(a.function.symbol for a in device.asked if a.function is not None)
    assert launched["one_row"] == 2 * 4 + 1, "of two layers and the head, in the step of one token alone"
    assert launched["linear"] == 0


@pytest.mark.slow
def test_sampling_gets_the_logits(gpu_models: GpuModels, device: InterpretingDevice) -> None:
    path = gpu_models.artifact(LLAMA, "sm_90a")
    sampling = Sampling(temperature=0.9, top_k=20, seed=5)
    assert tokens(path, PROMPTS[:1], 3, sampling) == tokens(path, PROMPTS[:1], 3, sampling, target="cpu")
    assert max(a.num_bytes for a in device.asked if a.what == "copy_out") == 160 * 4


@pytest.mark.slow
def test_the_head_alone_gives_all_logits_of_the_last_step(gpu_models: GpuModels, device: InterpretingDevice) -> None:
    with Engine(gpu_models.artifact(LLAMA, "sm_90a"), LimitOptions(num_pages=64, depth=1)) as engine:
        engine.submit(GenerationRequest(PROMPTS[0], 1, ignore_eos=True))
        [made] = [event.token_ids for event in engine.events() if event.token_ids]
        programs = engine._ranks._executor.programs
        assert programs.can_run_head
        output = programs.run_head(0, len(PROMPTS[0]), 1, 8)
    assert output.largest is None
    assert output.numbers().shape == (1, 160)
    assert output.numbers().argmax() == made[-1]


@pytest.mark.slow
@pytest.mark.parametrize("case", [KIMI, LLAMA], ids=str)
def test_logits_are_those_of_the_cpu(case: Case, gpu_models: GpuModels, device: InterpretingDevice) -> None:
    path = gpu_models.artifact(case, "sm_90a")
    options = {"num_pages": 256, "max_step_tokens": 8}
    wanted = run(path, PROMPTS, 4, LimitOptions(**options, target="cpu"))  # type: ignore[arg-type]
    found = run(path, PROMPTS, 4, LimitOptions(**options))  # type: ignore[arg-type]
    for one, other in zip(wanted, found, strict=True):
        assert one.tokens == other.tokens
        for position, logits in one.logits.items():
            assert (logits - other.logits[position]).abs().max() <= 1e-4 * logits.abs().max()


@pytest.mark.slow
def test_tokens_with_a_cache_in_fp8_are_those_of_the_cpu(gpu_models: GpuModels, device: InterpretingDevice) -> None:
    path = gpu_models.artifact(KIMI, "sm_90a", cache="fp8")
    functions = {f.source.partition(":")[2]: dict(f.signature) for f in read_kernels(path / KERNELS).functions}
    assert functions["append"]["cache"] == functions["attend_latent"]["cache"] == "*f8e4m3"
    assert tokens(path, PROMPTS, 4, Sampling(), max_step_tokens=8) == tokens(path, PROMPTS, 4, Sampling(), max_step_tokens=8, target="cpu")


@pytest.mark.parametrize(("size", "padded"), [(1, 1), (3, 4), (5, 8), (17, 24), (65, 80), (256, 256), (257, 257)])
def test_sizes_are_padded_to_a_few(size: int, padded: int) -> None:
    assert bucket(size, 512) == padded
    assert bucket(size, max(size, 40)) == min(padded, max(size, 40))
    assert bucket(LARGEST + 1, 512) == LARGEST + 1


def test_arguments_and_grids_are_those_of_the_step() -> None:
    wide = torch.zeros(12, 96)
    x, out = wide[:, 32:64], torch.zeros(12, 32)
    rows = to_json(cdiv(T, 5))
    descriptor = MapArgument(Operand(0), "f32", [32, "T"], [to_json(Stride(0, 0) * 4)], [32, 5], 128)
    scalars: list[Argument] = [Scalar(to_json(S * 2 + SMS), "i32"), Scalar(0.5, "f32"), Scalar(3, "f32")]
    spaces: list[Argument] = [ScratchSpace("sums"), PreparedInput("work")]
    few = Launch(1, (1, 1, 1), [])
    launch = Launch(0, (rows, to_json(Stride(0, 0)), 1), [Operand(0), Out(), *scalars, *spaces, descriptor])
    plan = Plan("ts::x", "triton", "", [Variant(1, [few]), Variant(8, [launch, Launch(2, ("S", 0, 1), [])])])
    sizes = {"T": 12, "S": 3, "P": 8, "SMS": 132}
    call = CallOnDevice([x], out, {}, sizes, scratch={"sums": 4096}, prepared={"work": 8192})
    [settled] = call.settle(plan)
    assert settled.function == 0
    assert settled.grid == (3, 96, 1)
    address = wide.data_ptr() + 32 * 4
    assert settled.arguments[:7] == (address, out.data_ptr(), 138, 0.5, 3.0, 4096, 8192)
    assert settled.arguments[7] == TensorMap(address, "f32", (32, 12), (384,), (32, 5), 128)
    assert [one.function for one in CallOnDevice([x], out, {}, {**sizes, "T": 7}).settle(plan)] == [1]
    of_newest = Plan("ts::x", "triton", "", [Variant(1, [few]), Variant(1, [Launch(2, (1, 1, 1), [])], newest=3)])
    assert [CallOnDevice([x], out, {}, sizes, newest=n).settle(of_newest)[0].function for n in (1, 2, 3, 4)] == [1, 1, 2, 2]
    beginnings = KernelsFile(1, "sm_100a", [], [plan, of_newest]).beginnings()
    assert beginnings == [3]
    steps = [[(0, 1), (1, 2)], [(0, 2), (2, 4), (0, 0)], [(0, 1), (1, 4)], [(0, 40)], []]
    assert [newest_of(beginnings, spans) for spans in steps] == [1, 1, 3, 3, 1]


def test_pages_on_the_device_are_copied_there(device: InterpretingDevice) -> None:
    limits = Limits(page_size=2, num_pages=3, max_sequences=1, max_step_tokens=8, max_context=6, num_states=4)
    calls = [CallNode("y", "layer", [], Frame(0, 0), caches={"cache": 0})]
    graph = Graph([], list(calls), "y")
    states, caches = [State("f32", (2, 3)), State("bf16", (5,))], [Cache("f32", (2, 3)), Cache("f32", (4,))]
    program = Program([StepPlan(1, "decode", Frame(0, 0))], caches, {"decode": graph}, states=states)
    sizes = [2 * 24, 2 * 16, 24, 10]
    places = [device.zeros((4, size), "u8") for size in sizes]
    for place in places:
        assert isinstance(place.buffer, torch.Tensor)
        place.buffer[:] = torch.arange(place.buffer.numel(), dtype=torch.uint8)
    PageCopies(program, limits, places[:2], places[2:]).copy(np.array([[0, 0, 2], [1, 1, 3]], np.int32))
    for place, size, (source, target) in zip(places, sizes, [(0, 2), (0, 0), (1, 3), (1, 3)], strict=True):
        assert isinstance(place.buffer, torch.Tensor)
        expected = torch.arange(4 * size, dtype=torch.uint8).view(4, size)
        expected[target] = expected[source]
        assert torch.equal(place.buffer.view(4, size), expected)  # of the second cache, which no step writes, nothing is copied


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "is not what this tsrun knows"),
        ('{"format": 2, "target": "sm_90a", "functions": [], "plans": []}', "has format 2, this tsrun reads 1"),
        (
            '{"format": 1, "target": "sm_90a", "functions": [], "plans": [{"op": "o", "kernel": "k", "call": "c", "variants": '
            '[{"tokens": 1, "launches": [{"function": 0, "grid": [1, 1, 1], "arguments": []}]}]}]}',
            "launches a function that it does not have",
        ),
    ],
)
def test_other_kernels_files_are_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / KERNELS).write_text(text)
    with pytest.raises(ArtifactError, match=why):
        read_kernels(tmp_path / KERNELS)


@pytest.mark.slow
def test_long_chunks_are_expanded_and_give_the_logits_of_the_cpu(gpu_models: GpuModels, device: InterpretingDevice) -> None:
    path = gpu_models.artifact(KIMI, "sm_90a")
    given = [prompt(28)]
    [wanted] = run(path, given, 1, LimitOptions(num_pages=256, target="cpu"), chunks=False)
    [found] = run(path, given, 1, LimitOptions(num_pages=256), chunks=False)
    launched = [a.function.symbol for a in device.asked if a.function is not None]
    assert launched.count("attend_expanded") == 3, "of three layers"
    assert wanted.tokens == found.tokens
    [[position, logits]] = wanted.logits.items()
    assert (logits - found.logits[position]).abs().max() <= 1e-4 * logits.abs().max()
