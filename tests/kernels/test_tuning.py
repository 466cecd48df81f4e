"""What measurements do to a choice, what is measured at which sizes, and that the quicker of two kernels is found to be so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tskernels import simd
from tskernels.measure import FEWEST_ROUNDS, Contender, measure, step_sizes
from tskernels.registry import REFERENCE, Call, Kernel, Operand, add_kernel, competes, explain, isolated, lookup, select
from tskernels.samples import Samples, in_rows, is_measurable
from tskernels.target import CPU, parse_target
from tskernels.tuning import Tuning, TuningError, name_of, read_tuning

X = Operand("f32", (None, 64))
SILU = Call("ts::silu", (X,))
LINEAR = Call("ts::linear", (X, Operand("f32", (96, 64))))


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    with isolated():
        yield


def add(op: str, name: str, seconds: float = 0.0, *, fixed_bits: bool = False, calls: list[str] | None = None) -> None:
    """A kernel that takes so long, and does nothing."""

    def run(*_: Any, **__: Any) -> None:
        if calls is not None:
            calls.append(name)
        time.sleep(seconds)

    add_kernel(Kernel(op, name, "compute", run, CPU, ("f32",), None, lambda call, target: 1.0, __file__, fixed_bits=fixed_bits))


def names(tuning: Tuning, threads: int = 1) -> list[str]:
    return [c.kernel.name for c in explain(SILU, CPU, tuning.of(threads)) if c.kernel.name in ("torch", "slow")]


def test_measurements_decide_where_there_are_all_of_those_that_compete() -> None:
    add("ts::silu", "slow")
    tuning = Tuning.here()
    assert names(tuning) == ["torch", "slow"]
    tuning.add(SILU, 1, "slow", 1, 1e-6)
    assert names(tuning) == ["torch", "slow"]
    assert not any(c.is_measured for c in explain(SILU, CPU, tuning.of(1)))
    tuning.add(SILU, 1, "torch", 1, 1e-3)
    assert names(tuning) == ["slow", "torch"]
    assert [c.kernel.name for c in explain(SILU, CPU, tuning.of(1)) if c.is_measured] == ["slow", "torch"]
    assert names(tuning, threads=2) == ["torch", "slow"]


def test_what_promises_the_same_bits_goes_before_what_is_quicker() -> None:
    add("ts::silu", "slow", fixed_bits=True)
    tuning = Tuning.here()
    tuning.add(SILU, 1, "slow", 1, 1.0)
    tuning.add(SILU, 1, "torch", 1, 1e-9)
    assert select(SILU, CPU).name == "slow"
    assert select(SILU, CPU, tuning.of(1)).name == "slow"


def test_sizes_of_steps_count_alike() -> None:
    tuning = Tuning.here()
    for tokens, seconds in ((1, 1e-6), (64, 64e-8)):
        tuning.add(SILU, 1, "torch", tokens, seconds)
    [torch_] = [c for c in explain(SILU, CPU, tuning.of(1)) if c.is_measured]
    assert torch_.cost_seconds == pytest.approx(16 * 1e-7)
    assert torch_.sizes == {1, 64}
    assert tuning.of(1).seconds(SILU, "other") == {}


def test_kernels_are_compared_in_steps_of_the_sizes_that_all_were_measured_at() -> None:
    """A token of a large step takes less than that of a small one: who has large steps alone would win."""
    add("ts::silu", "slow")
    tuning = Tuning.here()
    tuning.add(SILU, 1, "slow", 1, 1e-5)
    tuning.add(SILU, 1, "torch", 512, 1e-4)
    assert not any(c.is_measured for c in explain(SILU, CPU, tuning.of(1)))
    tuning.add(SILU, 1, "torch", 1, 1e-4)
    assert names(tuning) == ["slow", "torch"]
    assert {c.sizes for c in explain(SILU, CPU, tuning.of(1)) if c.is_measured} == {frozenset({1})}
    assert not any(c.is_measured for c in explain(SILU, CPU, tuning.of(1), sizes={512}))


def test_a_calls_name_does_not_depend_on_the_order_of_its_attributes() -> None:
    one, other = Call("ts::silu", (X,), {"a": 1, "b": 2}), Call("ts::silu", (X,), {"b": 2, "a": 1})
    assert name_of(one) == name_of(other) != name_of(SILU)


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    tuning = Tuning.here()
    tuning.add(LINEAR, 2, "torch", 64, 1.23456e-5)
    tuning.add(LINEAR, 2, "torch", 8, 1e-6)
    tuning.write(tmp_path / "folder" / "tuning.json")
    found = read_tuning(tmp_path / "folder" / "tuning.json")
    assert found.calls == {(name_of(LINEAR), 2): {"torch": {8: 1e-6, 64: 1.235e-5}}}
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["tuning.json"]


@pytest.mark.parametrize(
    "wrong",
    [
        '{"1": 5e-324}',
        '{"1": 1e300}',
        f'{{"1": 1{"0" * 400}}}',
        f'{{"1{"0" * 400}": 1e-6}}',
        f'{{"1{"0" * 5000}": 1e-6}}',
        '{"65537": 1e-6}',
        '{"a\\nb": 1e-6}',
        "[" * 100_000,
    ],
    ids=lambda wrong: wrong[:16],
)
def test_numbers_that_nothing_can_be_computed_with_are_refused_in_one_line(wrong: str, tmp_path: Path) -> None:
    tuning = Tuning.here()
    tuning.add(SILU, 1, "torch", 1, 1e-6)
    tuning.write(tmp_path / "tuning.json")
    text = (tmp_path / "tuning.json").read_text()
    start = text.index("{", text.index('"torch": {'))
    (tmp_path / "tuning.json").write_text(text[:start] + wrong + text[text.index("}", start) + 1 :])
    with pytest.raises(TuningError, match=r"tuning\.json: is no tuning file \(.*\); measure again with `tsc tune`$") as refused:
        read_tuning(tmp_path / "tuning.json")
    assert len(str(refused.value).splitlines()) == 1


def test_the_quicker_kernel_is_found_and_the_slower_one_soon_dropped() -> None:
    calls: list[str] = []
    add("ts::silu", "quick", 2e-4, calls=calls)
    add("ts::silu", "slow", 4e-3, calls=calls)
    contenders = [Contender(SILU, lookup("ts::silu", name)) for name in ("slow", "quick")]
    slow, quick = measure(contenders, 4, Samples(), 1, CPU)
    assert 2e-4 <= quick < slow
    assert slow >= 4e-3
    # two runs a round, and those that found out how many calls make one: far fewer than all rounds would be
    assert calls.count("slow") < calls.count("quick")
    assert calls.count("slow") >= FEWEST_ROUNDS * 2


def test_a_step_that_takes_too_long_is_left_out() -> None:
    head = Call("ts::linear", (Operand("bf16", (None, 4096)), Operand("bf16", (262144, 4096))))
    assert step_sizes(head, [512, 8, 1], CPU) == [1, 8]
    assert step_sizes(LINEAR, [512, 8, 1], CPU) == [1, 8, 512]
    assert step_sizes(head, [4096], CPU) == [4096]


def test_what_depends_on_more_than_its_sizes_is_not_measured() -> None:
    quantized = Call("ts::linear", (X, Operand("f32", (96, 64), "q8_0")))
    assert [is_measurable(c) for c in (LINEAR, quantized, Call("ts::all_reduce", (X,)), Call("ts::experts", (X,)))] == [
        True,
        *[False] * 3,
    ]


MEASURED = (
    LINEAR,
    Call("ts::linear", (X, Operand("f32", (96, 64)), Operand("f32", (96,)))),
    Call("ts::linear", (X, Operand("f32", (96, 64), "panels"))),
    Call("ts::gated_linear", (X, Operand("f32", (96, 64), "gated_panels")), {"activation": "silu"}),
    Call("ts::rms_norm", (X, Operand("f32", (64,))), {"eps": 1e-6, "offset": 0.0}),
    Call(
        "ts::rope",
        (Operand("f32", (None, 2, 64)), Operand("i32", (None,))),
        {"theta": 1e4, "kind": "default", "parameters": [], "interleaved": False},
    ),
    Call("ts::embedding", (Operand("i32", (None,)), Operand("f32", (50, 64))), {}),
    Call("ts::take_rows", (X, Operand("i32", (None,)))),
    SILU,
    Call("ts::add", (X, X)),
    Call("ts::softcap", (X,), {"cap": 30.0}),
    Call(
        "ts::attention",
        (
            Operand("f32", (None, 2, 2, 64)),
            Operand("f32", (None, None, 2, 2, 64)),
            *(Operand("i32", s) for s in ((None, 2), (None,), (None, None))),
        ),
        {"scale": 0.1, "window": 0, "softcap": 0.0},
    ),
    Call("ts::cache_append", (Operand("f32", (None, None, 2, 2, 64)), *[Operand("f32", (None, 2, 64))] * 2, Operand("i32", (None,)))),
)


@pytest.mark.parametrize("call", MEASURED, ids=lambda call: f"{call.op}-{len(call.operands)}-{call.operands[-1].layout}")
def test_samples_are_what_every_kernel_of_a_call_takes(call: Call) -> None:
    """Each computes on them what the reference does: samples that a kernel would refuse, or skip work for, measure nothing."""
    target = parse_target("cpu")
    samples, tokens = Samples(), 3
    torch.manual_seed(0)
    contenders = [Contender(call, c.kernel) for c in explain(call, target) if competes(c)]
    if not contenders:
        assert not simd.is_available()
        pytest.skip("only C++ kernels take this layout")
    assert all(seconds > 0 for seconds in measure(contenders, tokens, samples, 1, target))
    plain = samples.calls(in_rows(call), tokens)
    assert len({operands[-1].data_ptr() for operands, _ in plain}) in (1, len(plain))
    for operands, out in plain[:1]:
        attributes = {**call.attributes, **({"shard": 0} if call.op in ("ts::embedding", "ts::attention") else {})}
        into = {} if call.op == "ts::cache_append" else {"out": out}
        result = lookup(call.op, REFERENCE).function(*operands, **attributes, **into)
        assert (out if result is None else result).isfinite().all()
