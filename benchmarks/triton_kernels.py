"""Every Triton kernel on a GPU: its largest error against the reference in f64, and its time in a CUDA graph.

`python benchmarks/triton_kernels.py [--json FILE]`; needs a GPU with Triton. Sizes are those of a layer of Llama 3 8B, Qwen3 30B-A3B and
Kimi K2 with 16 heads a rank. Prints for each: microseconds, and gigabytes a second of operands and results, where bandwidth is its limit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import cuda_launches
import gpu_machine
import torch
from torch import Tensor

from tskernels.gpu import jit
from tskernels.gpu.launch import CudaSource, Launch
from tskernels.layouts import layout
from tskernels.registry import lookup, op_named

UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-20}
Case = tuple[str, str, str, tuple[Any, ...], dict[str, Any], Callable[..., Tensor] | None, float]
"""Label, op, kernel, operands, attributes, another reference, bytes that are moved."""


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def integers(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def paged(sequences: list[tuple[int, int]], page: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Spans, lengths, tables of scattered pages, and how many pages there are; sequences: tokens before, new tokens."""
    counts = [-(-(a + b) // page) for a, b in sequences]
    order, tables = torch.randperm(sum(counts)).tolist(), torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for row, count in enumerate(counts):
        tables[row, :count] = torch.tensor([order.pop() for _ in range(count)])
    ends = torch.tensor([0, *(b for _, b in sequences)]).cumsum(0)
    spans = torch.stack((ends[:-1], ends[1:]), 1).int()
    return spans, integers([a + b for a, b in sequences]), tables, sum(counts)


def attentions() -> Iterator[Case]:
    for label, sequences in (
        ("decode 32 x 4K", [(4096, 1)] * 32),
        ("decode 1 x 32K", [(32768, 1)]),
        ("decode ragged", [(n, 1) for n in (4641, 45118, 1730, 1696)]),
        ("prompt of 4K", [(0, 4096)]),
        ("mixed", [(2000, 1)] * 16 + [(0, 1000), (4000, 500)]),
    ):
        spans, lengths, tables, pages = paged(sequences, 64)
        tokens, keys = int(spans[-1, 1]), sum(a + b for a, b in sequences)
        q, cache = randn(tokens, 48, 128)[:, :32].view(tokens, 8, 4, 128), randn(pages, 64, 2, 8, 128)
        given = {"scale": 128**-0.5, "window": 0, "softcap": 0.0}
        yield f"GQA 8x4 {label}", "ts::attention", "triton", (q, cache, spans, lengths, tables, 0), given, None, keys * 4096.0
    spans, lengths, tables, pages = paged([(4096, 3), (0, 200)], 16)
    q, cache = randn(203, 4, 2, 256), randn(pages, 16, 2, 4, 256)
    capped = {"scale": 256**-0.5, "window": 512, "softcap": 50.0}
    yield "window, softcap", "ts::attention", "triton", (q, cache, spans, lengths, tables, 0), capped, None, 0
    q, cache, sinks = randn(203, 8, 8, 64), randn(pages, 16, 2, 8, 64), randn(8, 8)
    plain = {"scale": 0.125, "window": 128, "softcap": 0.0}
    yield "sinks", "ts::sink_attention", "triton", (q, cache, sinks, spans, lengths, tables, 0), plain, None, 0
    for label, heads, sequences in (
        ("H16 q1 16 x 8K", 16, [(8191, 1)] * 16),
        ("H16 q4 16 x 8K", 16, [(8188, 4)] * 16),
        ("H16 q4 1 x 80K", 16, [(81916, 4)]),
        ("H16 q4 ragged", 16, [(n - 4, 4) for n in (4641, 45118, 1730, 1696)]),
        ("H16 q1 64 x 8K", 16, [(8191, 1)] * 64),
        ("H128 q1 16 x 8K", 128, [(8191, 1)] * 16),
        ("H12 q5 513", 12, [(508, 5)]),
    ):
        spans, lengths, tables, pages = paged(sequences, 64)
        tokens, keys = int(spans[-1, 1]), sum(a + b for a, b in sequences)
        operands = (randn(tokens, heads, 512), randn(tokens, heads, 64), randn(pages, 64, 576), spans, lengths, tables, 0)
        yield f"MLA {label}", "ts::latent_attention", "triton", operands, {"scale": 192**-0.5, "window": 0}, None, keys * 1152.0


def products() -> Iterator[Case]:
    for tokens in (1, 32, 4096):
        x, w = randn(tokens, 4096), randn(28672, 4096) / 64
        yield f"{tokens} tokens", "ts::gated_linear", "triton", (x, w), {"activation": "silu"}, None, w.numel() * 2.0
        for form in ("int8", "int4", "q8_0"):
            with torch.device("cpu"):
                stored = layout(form).pack(torch.randn(4096, 4096) / 64)
                unpack = layout(form).unpack
                assert unpack is not None
                values = unpack(stored, (4096, 4096)).cuda().double()

            def reference(x: Tensor, _: Tensor, values: Tensor = values) -> Tensor:
                return torch.nn.functional.linear(x, values)

            yield f"{form} {tokens} tokens", "ts::linear", f"triton_{form}", (x, stored.cuda()), {}, reference, float(stored.numel())
        count, inner, outer = 128, 768, 2048
        weights = torch.zeros(tokens, count, device="cuda")
        weights.scatter_(1, torch.rand(tokens, count, device="cuda").topk(8, 1).indices, 0.125)
        parts = [randn(count, *s) / 32 for s in ((inner, outer), (inner, outer), (outer, inner))]
        some = min(count, tokens * 8)
        yield (
            f"128 x 768, {tokens} tokens",
            "ts::experts",
            "triton",
            (randn(tokens, outer), weights.bfloat16(), *parts),
            {},
            _experts,
            some * 9.4e6,
        )


def _experts(x: Tensor, weights: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The reference, on the device: all experts on all tokens."""
    result = torch.zeros_like(x)
    for n in range(len(gate)):
        [rows] = torch.nonzero(weights[:, n], as_tuple=True)
        inner = torch.nn.functional.silu(x[rows] @ gate[n].T) * (x[rows] @ up[n].T)
        result[rows] += weights[rows, n, None] * (inner @ down[n].T)
    return result


def rows() -> Iterator[Case]:
    for tokens in (32, 4096):
        x, w = randn(tokens, 4096), randn(4096)
        yield f"{tokens}", "ts::rms_norm", "triton", (x, w), {"eps": 1e-6, "offset": 0.0}, None, 4.0 * x.numel()
        yield f"{tokens}", "ts::row_squares", "triton", (x,), {}, None, 2.0 * x.numel()
        scaled = {"eps": 1e-6, "offset": 0.0, "count": 4096}
        yield f"{tokens}", "ts::rms_scale", "triton", (x, torch.rand(tokens, device="cuda") * 4096, w), scaled, None, 4.0 * x.numel()
        q = randn(tokens, 48, 128)[:, :32]
        positions = torch.randint(0, 200_000, (tokens,), dtype=torch.int32, device="cuda")
        rope = {"theta": 5e5, "kind": "default", "parameters": [], "interleaved": False}
        yield f"{tokens}", "ts::rope", "triton", (q, positions), rope, None, 4.0 * q.numel()
        joint, norms, heads = randn(tokens, 6144), (randn(128), randn(128)), {"q_heads": 32, "k_heads": 8, "width": 128}
        yield f"{tokens}", "ts::qk_rope", "triton", (joint, positions), heads | rope, None, 20480.0 * tokens
        normed = heads | {"eps": 1e-6, "offset": 0.0} | rope
        yield f"{tokens}", "ts::qk_norm_rope", "triton", (joint, positions, *norms), normed, None, 20480.0 * tokens
        added = {"eps": 1e-6, "offset": 0.0}
        yield f"{tokens}", "ts::add_norm", "triton", (x, randn(tokens, 4096), w), added, None, 8.0 * x.numel()
        for name in ("silu", "sigmoid", "gelu", "gelu_tanh"):
            yield f"{tokens}", f"ts::{name}", "triton", (x,), {}, None, 4.0 * x.numel()
        yield f"{tokens}", "ts::softcap", "triton", (x * 20,), {"cap": 30.0}, None, 4.0 * x.numel()
        yield f"{tokens}", "ts::scale", "triton", (x,), {"factor": 0.7}, None, 4.0 * x.numel()
        for name in ("add", "mul"):
            yield f"{tokens}", f"ts::{name}", "triton", (x, randn(tokens, 4096)), {}, None, 6.0 * x.numel()
        yield f"{tokens}", "ts::scale_rows", "triton", (x, randn(tokens, 1)), {}, None, 4.0 * x.numel()
        yield f"{tokens}", "ts::exp_minus", "triton", (x, randn(tokens, dtype=torch.float32)), {}, None, 6.0 * x.numel()
        yield f"{tokens}", "ts::divide_rows", "triton", (x.float(), torch.rand(tokens, device="cuda") + 1), {}, None, 8.0 * x.numel()
        yield f"{tokens}", "ts::row_sum", "triton", (x,), {}, None, 2.0 * x.numel()
        yield f"{tokens}", "ts::row_max", "triton", (x,), {}, None, 2.0 * x.numel()
        wide = [randn(4096, dtype=torch.float32) for _ in range(2)]
        yield f"{tokens}", "ts::decay", "triton", (x, *wide), {}, None, 6.0 * x.numel()
        ids, table = torch.randint(0, 32000, (tokens,), dtype=torch.int32, device="cuda"), randn(32000, 4096)
        yield f"{tokens}", "ts::embedding", "triton", (ids, table, 0), {}, None, 4.0 * x.numel()
        yield f"{tokens}", "ts::take_rows", "triton", (x, ids % tokens), {}, None, 4.0 * x.numel()
        choice = {"top_k": 8, "score": "sigmoid", "normalize": True, "scale": 2.5, "groups": 8, "top_groups": 4, "group_best": 2}
        logits = torch.randn(tokens, 256, device="cuda")
        yield f"{tokens}", "ts::route", "triton", (logits, torch.randn(256, device="cuda")), choice, None, 8.0 * logits.numel()
    logits = randn(64, 151936)
    yield "64 x 152K", "ts::max_key", "triton", (logits, 0), {}, None, 2.0 * logits.numel()
    sequences = [(0, 300)] + [(9, 1)] * 32
    spans, _, _, _ = paged(sequences, 64)
    states = integers([~0, *range(1, 33)])
    tokens = int(spans[-1, 1])
    x, w, state = randn(tokens, 8192), randn(8192, 1, 4), randn(33, 3, 8192, dtype=torch.float32)
    yield "300 + 32", "ts::short_conv", "triton", (x, w, state, spans, states, 0), {}, None, 0
    heads = (randn(tokens, 16, 128), randn(tokens, 16, 128), randn(tokens, 16, 2, 128), torch.rand(tokens, 16, 2, device="cuda"))
    given = (torch.rand(tokens, 16, 2, device="cuda").bfloat16(), randn(33, 16, 2, 128, 128, dtype=torch.float32), spans, states, 0)
    yield "300 + 32", "ts::gated_delta", "triton", (*heads, *given), {"scale": 0.09, "eps": 1e-6}, None, 0


def appends() -> Iterator[tuple[str, tuple[Any, ...]]]:
    slots = torch.randperm(4096, device="cuda")[:1000].int()
    yield "ts::cache_append", (randn(64, 64, 2, 8, 128), randn(1000, 8, 128), randn(1000, 16, 128)[:, :8], slots)
    yield "ts::latent_append", (randn(64, 64, 576), randn(1000, 512), randn(1000, 64), slots)


def planned(
    op: str, kernel: str, operands: tuple[Any, ...], out: Tensor, attributes: dict[str, Any]
) -> tuple[Callable[[Launch], None], tuple[Launch, ...]]:
    """What makes a launch of a call, with its memory, and the launches."""
    found = lookup(op, kernel)
    given = dict(zip(op_named(op).parameters, operands, strict=False)) | attributes
    tensors = [v for v in given.values() if isinstance(v, Tensor)]
    numbers = {n: v for n, v in given.items() if not isinstance(v, Tensor)}
    call = jit._call(op_named(op), tensors, out, numbers, found.layouts)
    target, multiprocessors = jit._device(tensors[0])
    constants = () if found.constants is None else found.constants(call)
    run = jit._Run(tensors, out, given, multiprocessors, constants)
    assert found.plan is not None
    settled = run.settle(found.plan(call, target))
    return lambda launch: cuda_launches.launch(run, launch) if isinstance(launch.source, CudaSource) else run._launch(launch), settled


def launcher(op: str, kernel: str, operands: tuple[Any, ...], out: Tensor, attributes: dict[str, Any]) -> Callable[[], None]:
    """What runs a call, after once, which compiles it."""
    launch, launches = planned(op, kernel, operands, out, attributes)

    def run() -> None:
        for one in launches:
            launch(one)

    run()
    return run


def microseconds(*calls: Callable[[], object]) -> float:
    """Of one of ten calls, these in turns, in a graph, whose operands are in the cache where they fit: the median of twenty."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for n in range(10):
            calls[n % len(calls)]()
    event: Any = torch.cuda.Event
    times: list[float] = []
    for _ in range(20):
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 100)
    return sorted(times)[10]


def _one(
    results: list[dict[str, Any]],
    label: str,
    op: str,
    kernel: str,
    operands: tuple[Any, ...],
    attributes: dict[str, Any],
    reference: Callable[..., Tensor] | None,
    moved: float,
) -> None:
    wide = [o.double() if isinstance(o, Tensor) and o.is_floating_point() else o for o in operands]
    kept = [o.clone() if isinstance(o, Tensor) and o.is_contiguous() else o for o in operands]
    expected = (reference or op_named(op).reference)(*wide, **attributes)
    del wide
    dtype = torch.float32 if op[4:] in ("row_squares", "row_sum", "row_max", "exp_minus", "decay") else kept[0].dtype
    if op == "ts::embedding":
        dtype = kept[1].dtype
    if not expected.is_floating_point():
        dtype = expected.dtype
    out = torch.empty(expected.shape, dtype=dtype)
    out.view(torch.uint8).fill_(255)
    lookup(op, kernel).function(*kept, out=out, **attributes)
    if expected.is_floating_point():
        error = float((out.double() - expected).norm() / expected.norm())
        good = error < 4 * UNIT[dtype]
    else:
        error = float((out != expected).sum())
        good = error == 0
    time = microseconds(launcher(op, kernel, tuple(kept), out, attributes))
    rate = moved / time / 1e3
    print(f"{'ok   ' if good else 'WRONG'} {op:22} {kernel:12} {label:24} rel {error:.2e} {time:9.1f} us {rate:8.0f} GB/s", flush=True)
    results.append({"op": op, "kernel": kernel, "case": label, "good": good, "error": error, "us": time, "gb_per_s": rate})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_device("cuda")
    print(torch.cuda.get_device_name(), torch.__version__)
    results: list[dict[str, Any]] = []
    for cases in (attentions, rows, products):
        for label, op, kernel, operands, attributes, reference, moved in cases():
            try:
                _one(results, label, op, kernel, operands, attributes, reference, moved)
            except Exception as problem:
                print(f"{op} {label}: {type(problem).__name__}: {str(problem)[-400:]}", flush=True)
                results.append({"op": op, "case": label, "failed": str(problem)[-400:]})
    for op, operands in appends():
        expected = op_named(op).reference(operands[0].clone(), *(o.long() if o.dtype == torch.int32 else o for o in operands[1:]))
        lookup(op, "triton").function(*operands)
        good = torch.equal(operands[0], expected)
        print("ok   " if good else "WRONG", op)
        results.append({"op": op, "kernel": "triton", "case": "1000", "good": good})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"command": "python benchmarks/triton_kernels.py", **gpu_machine.facts(), "results": results}, file, indent=1)
    failed = sum(not r.get("good") for r in results)
    print(f"{len(results)} cases, {failed} failed")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
