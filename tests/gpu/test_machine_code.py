"""What the kernels become for each architecture, compiled without a GPU: no spills, no more memory than there is, and tensor cores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.gpu.machine_code import MachineCode, Wanted, compiled

import tskernels.gpu
from tskernels.gpu.launch import Launch, PreparedInput, TritonSource
from tskernels.gpu.linear import FORMS
from tskernels.registry import Call, Operand, kernels, lookup
from tskernels.registry import ops as registered
from tskernels.target import ARCHITECTURES, gpu

pytest.importorskip("triton", reason="needs Triton: pip install tsc-llm[triton]")

MOST_SHARED, MOST_COLUMNS = 232_448, 512
WIDE = ("attend", "attend_latent", "expand", "attend_expanded", "linear", "gated_linear", "quantized_linear", "gate_and_up", "down")
"""Those that multiply matrices: they are big, and use tensor cores from 64 rows on, but in f32."""


def operand(dtype: str, *shape: int | None, layout: str = "rows") -> Operand:
    return Operand(dtype, shape, layout)


STEP = (operand("i32", None, 2), operand("i32", None), operand("i32", None, None))


def attention(dtype: str, heads: int, group: int, width: int, window: int = 0, softcap: float = 0.0, sinks: bool = False) -> Call:
    q, cache = operand(dtype, None, heads, group, width), operand(dtype, None, None, 2, heads, width)
    given = (operand(dtype, heads, group),) if sinks else ()
    attributes = {"scale": width**-0.5, "window": window, "softcap": softcap}
    return Call("ts::sink_attention" if sinks else "ts::attention", (q, cache, *given, *STEP), attributes)


def latent(dtype: str, heads: int, window: int = 0) -> Call:
    operands = (operand(dtype, None, heads, 512), operand(dtype, None, heads, 64), operand(dtype, None, None, 576), *STEP)
    return Call("ts::latent_attention", operands, {"scale": 192**-0.5, "window": window})


def in_fp8(call: Call) -> Call:
    """The call on a cache in fp8, the operand that has pages."""
    return replace(
        call,
        operands=tuple(replace(o, layout="fp8_cache") if o.shape[:2] == (None, None) and len(o.shape) > 2 else o for o in call.operands),
    )


def expanded(dtype: str, heads: int, width: int = 128) -> Call:
    """As many heads as are worked on at a time: more are the same functions again."""
    rows = (operand(dtype, None, heads, width), operand(dtype, None, heads, width), operand(dtype, None, heads, 64))
    stored = (operand(dtype, None, None, 576), *[operand(dtype, heads, width, 512)] * 2)
    return Call("ts::expanded_attention", (*rows, *stored, *STEP), {"scale": 192**-0.5, "expanded_from": 171})


def gated(dtype: str, inner: int, outputs: int, layout: str = "rows") -> Call:
    return Call("ts::gated_linear", (operand(dtype, None, inner), operand(dtype, outputs, inner, layout=layout)), {"activation": "silu"})


def linear(dtype: str, inner: int, outputs: int, layout: str = "rows", bias: bool = False) -> Call:
    given = (operand(dtype, None, inner), operand(dtype, outputs, inner, layout=layout))
    return Call("ts::linear", (*given, operand(dtype, outputs)) if bias else given)


def experts(dtype: str, count: int, inner: int, outer: int, bias: bool = False) -> Call:
    biases = (operand(dtype, count, inner), operand(dtype, count, inner), operand(dtype, count, outer)) if bias else ()
    weights = (operand(dtype, count, inner, outer), operand(dtype, count, inner, outer), operand(dtype, count, outer, inner))
    gating = {"alpha": 1.702, "limit": 7.0, "offset": 1.0} if bias else {"alpha": 1.0, "limit": 0.0, "offset": 0.0}
    return Call("ts::experts", (operand(dtype, None, outer), operand(dtype, None, count), *weights, *biases), gating)


def route(groups: int) -> Call:
    attributes = {
        "top_k": 8,
        "score": "sigmoid",
        "normalize": True,
        "scale": 2.5,
        "groups": groups,
        "top_groups": min(groups, 4),
        "group_best": 2,
    }
    return Call("ts::route", (operand("f32", None, 256), operand("f32", 256)), attributes)


def by_rows(dtype: str, *shape: int) -> Iterator[Call]:
    x = operand(dtype, None, *shape)
    yield Call("ts::rms_norm", (x, operand(dtype, shape[-1])), {"eps": 1e-6, "offset": 0.0})
    yield Call("ts::row_squares", (x,))
    yield Call("ts::rms_scale", (x, operand("f32", None), operand(dtype, *shape)), {"eps": 1e-6, "offset": 0.0, "count": 9000})
    rope = {"theta": 1e4, "kind": "default", "parameters": [], "interleaved": False}
    yield Call("ts::rope", (x, operand("i32", None)), rope)
    yield Call("ts::take_rows", (x, operand("i32", None)))
    for name in ("silu", "sigmoid", "gelu", "gelu_tanh"):
        yield Call(f"ts::{name}", (x,))
    yield Call("ts::scale", (x,), {"factor": 2.0})
    yield Call("ts::softcap", (x,), {"cap": 30.0})
    yield Call("ts::add", (x, x))
    yield Call("ts::mul", (x, x))
    yield Call("ts::row_max", (x,))
    yield Call("ts::row_sum", (x,))
    yield Call("ts::decay", (x, operand("f32", *shape), operand("f32", *shape)))


def joined(dtype: str, heads: int, keys: int, width: int) -> Iterator[Call]:
    x, w, positions = operand(dtype, None, (heads + 2 * keys) * width), operand(dtype, width), operand("i32", None)
    norm = {"eps": 1e-6, "offset": 0.0}
    given = {"q_heads": heads, "k_heads": keys, "width": width, "theta": 1e4, "kind": "default", "parameters": [], "interleaved": False}
    yield Call("ts::qk_rope", (x, positions), given)
    yield Call("ts::qk_norm_rope", (x, positions, w, w), given | norm)
    yield Call("ts::qk_norm_rope", (x, positions, w, w), given | norm | {"interleaved": True, "fraction": 0.5})
    yield Call("ts::add_norm", (x, x, operand(dtype, (heads + 2 * keys) * width)), norm)


def others(dtype: str) -> Iterator[Call]:
    yield Call("ts::embedding", (operand("i32", None), operand(dtype, 32000, 4096)))
    yield Call("ts::cache_append", (operand(dtype, None, None, 2, 8, 128), *[operand(dtype, None, 8, 128)] * 2, operand("i32", None)))
    latents = (operand(dtype, None, None, 576), operand(dtype, None, 512), operand(dtype, None, 64), operand("i32", None))
    yield Call("ts::latent_append", latents)
    yield in_fp8(Call("ts::latent_append", latents))
    yield Call("ts::max_key", (operand(dtype, None, 151_936),))
    yield Call("ts::key_index", (operand("i64", None),))
    yield Call("ts::key_value", (operand("i64", None),))
    yield Call("ts::exp_minus", (operand(dtype, None, 256), operand("f32", None)))
    yield Call("ts::divide_rows", (operand("f32", None, 256), operand("f32", None)))
    yield Call("ts::scale_rows", (operand(dtype, None, 256), operand(dtype, None, 1)))
    rows = (operand(dtype, None, 8192), operand(dtype, 8192, 1, 4), operand("f32", None, 3, 8192), STEP[0], STEP[1])
    yield Call("ts::short_conv", rows)
    heads = (operand(dtype, None, 16, 128), operand(dtype, None, 16, 128), operand(dtype, None, 16, 2, 128))
    gains = (operand("f32", None, 16, 2), operand(dtype, None, 16, 2), operand("f32", None, 16, 2, 128, 128), STEP[0], STEP[1])
    yield Call("ts::gated_delta", (*heads, *gains), {"scale": 0.1, "eps": 1e-6})


def sums(dtype: str, width: int) -> Iterator[Call]:
    x, w = operand(dtype, None, width), operand(dtype, width)
    yield Call("ts::all_reduce", (x,), {"axis": "tp", "reduction": "sum"})
    yield Call("ts::all_reduce_add", (x, x), {"axis": "tp"})
    yield Call("ts::all_reduce_add_norm", (x, x, w), {"axis": "tp", "eps": 1e-6, "offset": 0.0})


MATRICES = (
    *(attention(dtype, 8, 4, width) for dtype in ("bf16", "f16") for width in (64, 128, 256)),
    *(attention("bf16", 8, 8, 128, window=128, sinks=True), attention("bf16", 4, 2, 256, softcap=50.0), attention("f32", 8, 4, 128)),
    *(latent("bf16", 16), latent("bf16", 128), latent("f16", 64), latent("f32", 16)),
    *(in_fp8(latent("bf16", 16)), in_fp8(attention("bf16", 8, 4, 128))),
    *(expanded("bf16", 8), in_fp8(expanded("bf16", 8))),
    *(gated("bf16", 4096, 24576), gated("f16", 2048, 8192), gated("f32", 576, 3072)),
    *(linear("bf16", 12288, 4096), linear("f16", 10944, 2048, bias=True), linear("bf16", 576, 49152)),
    *(call for form in FORMS for call in (linear("bf16", 4096, 4096, form), gated("bf16", 4096, 8192, f"gated_{form}"))),
    *(experts("bf16", 128, 768, 2048), experts("bf16", 32, 2880, 2880, bias=True), experts("f32", 8, 64, 64)),
)
ROWS = (
    *(*by_rows("bf16", 8, 128), *by_rows("bf16", 7168), *others("bf16"), *by_rows("f32", 576)),
    *(*sums("bf16", 7168), *sums("f32", 576), route(1), route(8)),
    *(*joined("bf16", 32, 8, 128), *joined("f32", 9, 3, 64)),
)
EVERYDAY = (latent("bf16", 16), attention("bf16", 8, 4, 128), linear("bf16", 4096, 6144))


def launches(call: Call, architecture: str) -> list[Launch]:
    """Of the kernel for a call: every function with its constants once."""
    name = "triton" if ARCHITECTURES[architecture] == "cuda" else "triton_rocm"
    layout = next((o.layout.removeprefix("gated_") for o in call.operands if o.layout != "rows"), None)
    found = lookup(call.op, f"{name}_{layout}" if layout else name)
    assert found.plan is not None
    unlike: dict[str, Launch] = {}
    for variant in found.plan(call, gpu(architecture)).variants:
        for launch in variant.launches:
            unlike.setdefault(repr(replace(launch, grid=(1, 1, 1))), launch)
    return list(unlike.values())


def check(wanted: list[Wanted]) -> None:
    wrong = []
    for (architecture, launch), code in zip(wanted, compiled(wanted), strict=True):
        wrong += [
            f"{architecture} {launch.source.function} {dict(launch.constants)}: {what}" for what in _faults(architecture, launch, code)
        ]
    assert not wrong, "\n".join(wrong)


def _faults(architecture: str, launch: Launch, code: MachineCode) -> Iterator[str]:
    function, is_matrix = launch.source.function, launch.source.function in WIDE
    if code.stack or code.count("LDL", "STL"):
        yield f"{code.stack} bytes of stack, {code.count('LDL', 'STL')} spills"
    if code.shared > MOST_SHARED or code.tensor_columns > MOST_COLUMNS:
        yield f"{code.shared} bytes of shared memory, {code.tensor_columns} columns of tensor memory"
    total = sum(code.instructions.values())
    if total < (200 if is_matrix else 16):
        yield f"{total} instructions: a trap?"
    is_narrow = next((launch.types[name] for name in ("x", "q", "inner", "content", "w") if name in launch.types), "") == "f32"
    if is_matrix and int(launch.constants.get("ROWS", launch.constants.get("KEYS", 0))) >= 64 and not is_narrow:
        expected = "HGMMA" if architecture == "sm_90a" else "UTC"
        if not code.count(expected):
            yield f"no {expected}"
        # Where registers are short, the assembler waits after each product; others than attention have few in a row.
        if function.startswith("attend") and code.count("WARPGROUP") > code.count("HGMMA"):
            yield "products wait for each other"
    elif is_matrix and not is_narrow and not code.count("HMMA"):
        yield f"no HMMA in {function}"
    if launch.dependent:
        yield from _touched_early(launch, code)


def _touched_early(launch: Launch, code: MachineCode) -> Iterator[str]:
    """What is wrong with when it waits for the launches before: all of its threads do, before they touch what another launch writes.
    That they read nothing but weights and what the host prepared is not to be seen here."""
    if code.before_wait is None:
        yield "never waits for the launches before"
        return
    if re.search(r"^\s*(?:@\S+\s+)?(?:bra|ret|exit)\b|^\$L__BB", code.before_wait, re.M):
        yield "does not always wait"
    touched = re.findall(r"\b(?:ld|st|atom|red|cp|prefetch)(?:\.\w+)*\.global[.\w]*", code.before_wait)
    if launch.early and not touched:
        yield "reads nothing early"
    may_read = launch.early or any(isinstance(argument, PreparedInput) for argument in launch.arguments.values())
    if [one for one in touched if not (may_read and one.startswith("ld."))]:
        yield f"touches memory before it waits: {', '.join(sorted(set(touched)))}"


def wanted(calls: tuple[Call, ...], architectures: tuple[str, ...]) -> list[Wanted]:
    return [(a, launch) for a in architectures for call in calls for launch in launches(call, a)]


@pytest.mark.parametrize("call", EVERYDAY, ids=lambda call: call.op)
def test_what_most_steps_run_on_hopper_and_blackwell(call: Call) -> None:
    check(wanted((call,), ("sm_90a", "sm_100a")))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_90a", "sm_100a"])
def test_products(architecture: str) -> None:
    check(wanted(MATRICES, (architecture,)))


@pytest.mark.slow
def test_rows() -> None:
    check(wanted(ROWS, ("sm_90a", "sm_100a")))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_103a", "gfx942", "gfx950"])
def test_the_same_sources_compile_for_other_architectures(architecture: str) -> None:
    made = compiled(
        wanted((*EVERYDAY, in_fp8(latent("bf16", 16)), gated("bf16", 4096, 24576), experts("bf16", 128, 768, 2048)), (architecture,))
    )
    most = {"gfx942": 65_536, "gfx950": 163_840}.get(architecture, MOST_SHARED)
    assert all(code.shared <= most for code in made), [(code.name, code.shared) for code in made]
    assert all(sum(code.instructions.values()) > 20 for code in made)
    assert not [code.name for code in made if code.stack]


def test_every_kernel_and_every_function_is_compiled_here() -> None:
    """What is not compiled here is not known to compile."""
    calls = (*MATRICES, *ROWS)
    sources = {launch.source for call in calls for launch in launches(call, "sm_90a")}
    modules = {source.module for source in sources if isinstance(source, TritonSource)}
    folder = Path(tskernels.gpu.__file__).parent
    written = {path.stem: re.findall(r"^@triton\.jit\ndef (\w+)\(", path.read_text(), re.M) for path in folder.glob("*_triton.py")}
    called = " ".join(path.read_text() for path in folder.glob("*_triton.py"))
    for stem, functions in written.items():
        for name in functions:
            is_launched = any(s.function == name and f"tskernels.gpu.{stem}" in modules for s in sources)
            assert is_launched or called.count(f"{name}(") > 1, f"{stem}: {name} is in no configuration"
    ops = {call.op for call in calls}
    assert {op for op in registered() if any(k.name.startswith("triton") for k in kernels(op))} == ops
