"""Time the latent attention decode kernels in CUDA C++ on a GPU, and check them against float64 there.

`python benchmarks/mla_decode.py [--out FILE.json] [--records FILE.json] [--check] [--only-check] [--most N] [--fp8]
[--flash-mla LIBRARY]` needs a Hopper GPU, nvcc and torch with CUDA. Of each case the time between two events around one launch, where the
second-level cache holds nothing of what is read: 256 MB written before it, which are written back to memory while the kernel reads, or
also read, so that nothing is left to write; and the time of one launch of many in a graph, whose caches are others each time, each a
dependent of the one before, as in a step of the engine. Medians. TB/s counts the latent cache once. FlashMLA (`gpu_peers.py`) is timed
beside it in the same ways, its plan made before.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import gpu_machine
import gpu_peers
import torch

from tskernels.fp8_cache import narrow
from tskernels.gpu import latent_splits as splits

FOLDER = Path(__file__).resolve().parent.parent / "kernels/tskernels/gpu"
SHARED_BYTES = 232448
LATENT, ROTATED = 512, 64
FILES = {"mla_decode": "mla_decode_sm90", "mla_decode_gangs": "mla_decode_sm90_gangs"}
"""Of each kernel."""
AHEAD = 400_000
"""Cycles for which the device waits before a launch that is timed alone, so that what the host does for it is done by then."""


@dataclass(frozen=True)
class Case:
    name: str
    lengths: tuple[int, ...]
    heads: int
    queries: int
    page: int = 64
    fp8: bool = False


CASES = [
    Case("ragged", (4641, 45118, 1730, 1696), 16, 4),
    *(
        Case(f"kv{k}k", (k * 1024,) * b, 16, q)
        for q in (1, 4)
        for k, bs in ((8, (1, 4, 16, 64)), (32, (1, 4, 16, 64)), (80, (1, 4, 16)))
        for b in bs
    ),
    Case("h64 kv8k", (8192,) * 16, 64, 1),
    Case("h64 kv8k", (8192,) * 64, 64, 1),
    Case("h128 kv8k", (8192,) * 16, 128, 1),
    Case("h128 kv8k", (8192,) * 64, 128, 1),
    Case("kv4k", (4096,) * 128, 16, 1),
    Case("kv4k", (4096,) * 128, 128, 2),
    *(Case(f"page{page}", (32768,) * b, 16, 1, page) for page in (32, 16) for b in (1, 16)),
]


class Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint32 * 16))


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


OVERLAPS = (Attribute * 1)(Attribute(6, 0, (ctypes.c_uint32 * 16)(1)))
"""A launch with it may begin while the one before ends, as the engine's do: CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION."""


class Driver:
    """What of CUDA's driver a launch takes."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: error {code}")

    def kernels(self, fp8: bool) -> dict[str, ctypes.c_void_p]:
        """Those for such a cache, compiled."""
        symbols = ("mla_decode",) if fp8 else tuple(FILES)
        with tempfile.TemporaryDirectory() as folder:
            return {symbol: self.load(compile_kernel(Path(folder), FILES[symbol], fp8), symbol) for symbol in symbols}

    def load(self, cubin: Path, symbol: str) -> ctypes.c_void_p:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), cubin.read_bytes())
        self.call("cuModuleGetFunction", ctypes.byref(function), module, symbol.encode())
        self.call("cuFuncSetAttribute", function, 8, SHARED_BYTES)
        return function

    def map(self, tensor: torch.Tensor, rows: int, blocks: int) -> ctypes.Array[ctypes.c_uint64]:
        """Boxes of so many rows and blocks of 64 columns of a bf16 matrix, 128-byte swizzle."""
        raw = (ctypes.c_uint64 * 24)()
        at = (ctypes.addressof(raw) + 63) // 64 * 64
        sizes = (ctypes.c_uint64 * 3)(64, tensor.shape[0], tensor.shape[1] // 64)
        strides, box, steps = (
            (ctypes.c_uint64 * 2)(tensor.stride(0) * 2, 128),
            (ctypes.c_uint32 * 3)(64, rows, blocks),
            (ctypes.c_uint32 * 3)(1, 1, 1),
        )
        self.call(
            "cuTensorMapEncodeTiled", ctypes.c_void_p(at), 9, 3, ctypes.c_void_p(tensor.data_ptr()), sizes, strides, box, steps, 0, 3, 2, 0
        )
        values = (ctypes.c_uint64 * 16).from_address(at)
        values.owner = raw  # type: ignore[attr-defined]
        return values


class Call:
    """A call of the kernel for a case, as `mla_cuda.py` chooses it, on operands of the case."""

    dependent = True

    def __init__(
        self,
        driver: Driver,
        kernels: dict[str, ctypes.c_void_p],
        case: Case,
        spans: list[tuple[int, int]],
        tokens: int,
        caches: int = 1,
    ):
        self.driver, self.case, self.spans = driver, case, spans
        in_gangs = "mla_decode_gangs" in kernels and max(last - first for first, last in spans) * case.heads > splits.ROWS
        self.function = kernels["mla_decode_gangs" if in_gangs else "mla_decode"]
        device = torch.device("cuda")
        page, lengths, heads = case.page, case.lengths, case.heads
        columns = max(-(-n // page) for n in lengths)
        used = sum(-(-n // page) for n in lengths)
        order = torch.randperm(used, device=device).to(torch.int32)
        self.tables = torch.full((len(lengths), columns), 2**30, dtype=torch.int32, device=device)
        at = 0
        for i, n in enumerate(lengths):
            count = -(-n // page)
            self.tables[i, :count] = order[at : at + count]
            at += count
        self.caches = [torch.randn(used, page, LATENT + ROTATED, device=device, dtype=torch.bfloat16) for _ in range(caches)]
        if case.fp8:
            self.caches = [narrow(cache) for cache in self.caches]
        for cache in self.caches:  # what lies past the end is no number
            for i, n in enumerate(lengths):
                if n % page:
                    end = cache[int(self.tables[i, n // page]), n % page :]
                    end.copy_(torch.full_like(end, math.nan, dtype=torch.float32))
        self.q = torch.randn(tokens * heads, LATENT, device=device, dtype=torch.bfloat16)
        self.rotated = torch.randn(tokens * heads, ROTATED, device=device, dtype=torch.bfloat16)
        self.out = torch.full((tokens * heads, LATENT), math.nan, device=device, dtype=torch.bfloat16)
        self.logarithms = torch.full((tokens * heads,), math.nan, device=device)
        self.blocks = torch.cuda.get_device_properties(0).multi_processor_count
        work = splits.plan_splits(spans, list(lengths), heads, tokens, self.blocks)
        self.work = torch.tensor(splits.encode(work), dtype=torch.int32, device=device)
        items = [item for block in work for item in block if item.splits > 1]
        count = max((item.partial + item.splits for item in items), default=1)
        self.partials = torch.full((count, 64, LATENT), math.nan, device=device, dtype=torch.float16)
        self.partial_half_rows = torch.full((count, 64, 2, 2), math.nan, device=device)
        self.counters = torch.zeros(max((item.counter for item in items), default=0) + 1, dtype=torch.int32, device=device)
        self.scale = (LATENT + ROTATED) ** -0.5
        queries = driver.map(self.q, 64, 8), driver.map(self.rotated, 64, 1)
        box = math.gcd(page, 64)
        blocks = (1,) if in_gangs else (4, 5) if box == 64 else (1, 1)
        self.arguments = []
        for cache in self.caches:
            if case.fp8:
                rows = [ctypes.c_void_p(cache.data_ptr()), ctypes.c_int(LATENT + ROTATED)]
            else:
                rows = [driver.map(cache.flatten(0, 1), box, count) for count in blocks]
            self.arguments.append(self._arguments(*queries, *rows))

    def _arguments(self, *maps: Any) -> Any:
        tensors = (self.work, self.tables, self.out, self.logarithms, self.partials, self.partial_half_rows, self.counters)
        values = [*maps, *(ctypes.c_void_p(t.data_ptr()) for t in tensors)]
        values += [
            ctypes.c_int(self.tables.shape[1]),
            ctypes.c_int(self.case.page),
            ctypes.c_int(self.case.heads),
            ctypes.c_float(self.scale),
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        pointers.owner = values  # type: ignore[attr-defined]
        return pointers

    def launch(self, which: int = 0) -> None:
        stream, attributes = torch.cuda.current_stream().cuda_stream, len(OVERLAPS) if self.dependent else 0
        config = Config((self.blocks, 1, 1), (384, 1, 1), SHARED_BYTES, stream, OVERLAPS, attributes)
        self.driver.call("cuLaunchKernelEx", ctypes.byref(config), self.function, self.arguments[which], None)

    def errors(self) -> tuple[float, float]:
        """Of the result, relative to the reference in f64, and of the logarithms, absolute."""
        expected, logarithms = torch.zeros_like(self.out, dtype=torch.float64), torch.zeros_like(self.logarithms, dtype=torch.float64)
        heads, claimed = self.case.heads, torch.zeros_like(self.logarithms, dtype=torch.bool)
        for i, ((first, last), n) in enumerate(zip(self.spans, self.case.lengths, strict=True)):
            rows = slice(first * heads, last * heads)
            pages = self.tables[i, : -(-n // self.case.page)].long()
            cache = self.caches[0]
            keys = cache.view(torch.uint8)[pages].view(cache.dtype).flatten(0, 1)[:n].double()
            q = torch.cat((self.q[rows], self.rotated[rows]), 1).double()
            seen = n - (last - first) + torch.arange(len(q), device=q.device) // heads + 1
            scores = (q @ keys.T * self.scale).masked_fill_(torch.arange(n, device=q.device)[None] >= seen[:, None], -math.inf)
            expected[rows] = scores.softmax(-1) @ keys[:, :LATENT]
            logarithms[rows] = scores.logsumexp(-1)
            claimed[rows] = True
        if not torch.all(self.out[~claimed] == 0):
            return math.nan, math.nan
        error = (self.out.double() - expected).norm() / expected.norm()
        return error.item(), (self.logarithms.double() - logarithms)[claimed].abs().max().item()


def compile_kernel(folder: Path, name: str, fp8: bool) -> Path:
    cubin = folder / f"{name}.cubin"
    command = ["nvcc", "-std=c++20", "-O3", f"-DFP8_CACHE={int(fp8)}", "-gencode", "arch=compute_90a,code=sm_90a", "-cubin"]
    subprocess.run([*command, str(FOLDER / "cuda" / f"{name}.cu"), "-o", str(cubin)], check=True)
    return cubin


CHECKS = [  # lengths, query tokens of each, heads, page
    ((64,), (1,), 16, 64),
    ((1,), (1,), 16, 64),
    ((65, 1, 700), (1, 1, 1), 16, 64),
    ((100, 37), (1, 1), 16, 32),
    ((1000, 130, 64, 2000), (4, 4, 4, 4), 16, 64),
    ((513,), (5,), 12, 32),
    ((513, 999), (7, 2), 12, 16),
    ((3000, 4100), (1, 1), 128, 64),
    ((300, 2049, 5), (2, 1, 3), 128, 128),
    ((4641, 9118, 1730, 1696), (4, 4, 4, 4), 16, 64),
    ((8192,), (1,), 16, 64),
    ((8192,), (4,), 32, 64),
    ((777,) * 200, (1,) * 200, 16, 64),
    ((1500,) * 40, (2,) * 40, 128, 32),
    ((500, 200), (3, 1), 16, 48),
    ((500, 200), (3, 1), 16, 96),
    ((130, 300), (130, 40), 16, 64),
]


def check(driver: Driver, kernels: dict[str, ctypes.c_void_p], fp8: bool, most: int | None = None) -> list[tuple[str, float, float]]:
    """most: so many shapes, the first ones."""
    found = []
    for lengths, queries, heads, page in CHECKS[:most]:
        for gap in (0, 3):  # rows before each sequence that are of none
            spans, at = [], 0
            for count in queries:
                spans.append((at + gap, at + gap + count))
                at += gap + count
            call = Call(driver, kernels, Case("check", lengths, heads, 0, page, fp8), spans, at + gap)
            bits = []
            for _ in range(3):
                call.out.fill_(math.nan)
                call.logarithms.fill_(math.nan)
                call.partials.fill_(math.nan)
                call.launch()
                torch.cuda.synchronize()
                bits.append(call.out.clone())
            error, logarithm = call.errors()
            if not all(torch.equal(bits[0], b) for b in bits) or call.counters.any():
                error = math.nan
            found.append((f"{str(lengths)[:30]} q{str(queries)[:12]} h{heads} page {page} gap {gap}", error, logarithm))
    return found


def measure(driver: Driver, kernels: dict[str, ctypes.c_void_p], case: Case, flash_mla: Path | None) -> dict[str, Any]:
    cache_bytes = sum(case.lengths) * (LATENT + ROTATED) * (1 if case.fp8 else 2)
    caches = max(1, min(40, -(-400_000_000 // cache_bytes)))
    count = len(case.lengths)
    spans = [(i * case.queries, (i + 1) * case.queries) for i in range(count)]
    call = Call(driver, kernels, case, spans, count * case.queries, caches)
    times = time_launches(call.launch, caches)
    flops = 2 * case.heads * case.queries * sum(case.lengths) * (2 * LATENT + ROTATED)
    found: dict[str, Any] = {
        **times,
        "terabytes": cache_bytes / times["microseconds"] / 1e6,
        "graph_terabytes": cache_bytes / times["graph_microseconds"] / 1e6,
        "teraflops": flops / times["microseconds"] / 1e6,
    }
    if flash_mla and case.page == 64 and not case.fp8:
        q = torch.cat((call.q, call.rotated), 1).view(count, case.queries, case.heads, LATENT + ROTATED)
        tables, lengths = call.tables.clamp(max=len(call.caches[0]) - 1), torch.tensor(case.lengths, dtype=torch.int32, device="cuda")
        theirs = [gpu_peers.flash_mla(flash_mla, q, cache, tables, lengths, LATENT, call.scale) for cache in call.caches]
        call.launch()
        mine, result = call.out.float(), theirs[0]().reshape(call.out.shape).float()
        differs = ((mine - result).norm() / result.norm()).item()
        found["flash_mla"] = {**time_launches(lambda which: theirs[which](), caches), "differs": differs}
    return found


def time_launches(launch: Callable[[int], Any], caches: int) -> dict[str, float]:
    """Medians, in microseconds: of `launch` of one cache after the other, alone and in a graph."""
    flush = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
    alone = []
    for is_read in (False, True):
        times = []
        for repeat in range(30):
            flush.fill_(repeat)
            if is_read:
                flush.max()
            torch.cuda._sleep(AHEAD)  # type: ignore[no-untyped-call]
            begin, end = _event(), _event()
            begin.record()
            launch(repeat % caches)
            end.record()
            torch.cuda.synchronize()
            if repeat >= 5:
                times.append(begin.elapsed_time(end) * 1e3)
        alone.append(statistics.median(times))
    # So many that the start of the graph is little of each one's time; of long ones few, since a device that is hot is slower.
    count = caches * -(-24 // caches) if caches > 2 else 4
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            launch(i % caches)
    in_graph = []
    for repeat in range(12):
        begin, end = _event(), _event()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if repeat >= 3:
            in_graph.append(begin.elapsed_time(end) * 1e3 / count)
    return {"microseconds": alone[0], "microseconds_after_reads": alone[1], "graph_microseconds": statistics.median(in_graph)}


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def copy_bandwidth() -> float:
    """TB/s, bytes read and written."""
    source, target = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    times = []
    for _ in range(20):
        begin, end = _event(), _event()
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return float(2 * (1 << 30) / statistics.median(times) / 1e9)


def records(device: str, day: str, cases: list[Case], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For `tsc kernels roof`: the times in a graph, in the form of its results."""
    found = []
    for case, row in zip(cases, rows, strict=True):
        tokens, count = case.queries * len(case.lengths), len(case.lengths)
        pages, columns = sum(-(-n // case.page) for n in case.lengths), max(-(-n // case.page) for n in case.lengths)
        shapes = [[tokens, case.heads, LATENT], [tokens, case.heads, ROTATED], [pages, case.page, LATENT + ROTATED]]
        types = ("bf16", "bf16", "f8e4m3" if case.fp8 else "bf16")
        operands = [f"{dtype}{shape}" for dtype, shape in zip(types, shapes, strict=True)] + [
            f"i32{shape}" for shape in ([count, 2], [count], [count, columns])
        ]
        facts = {
            "op": "ts::latent_attention",
            "operands": operands,
            "kernel": "cuda_fp8_cache" if case.fp8 else "cuda",
            "device": device,
            "date": day,
        }
        found.append({**facts, "seconds": row["graph_microseconds"] * 1e-6})
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--records", type=Path, help="where `tsc kernels roof` finds it: benchmarks/results/kernels_*.json")
    parser.add_argument("--check", action="store_true", help="against float64, before timing")
    parser.add_argument("--only-check", action="store_true")
    parser.add_argument("--most", type=int, help="shapes to check, as for compute-sanitizer")
    parser.add_argument("--flash-mla", type=Path, metavar="LIBRARY", help="FlashMLA's, timed beside")
    parser.add_argument("--fp8", action="store_true", help="of a cache in e4m3")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.zeros(1, device="cuda")
    driver = Driver()
    kernels = driver.kernels(options.fp8)
    checks = []
    if options.check or options.only_check:
        for name, error, logarithm in check(driver, kernels, options.fp8, options.most):
            checks.append({"shape": name, "relative_error": error, "of_logarithms": logarithm})
            print(f"{name:70} {error:.2e} {logarithm:.1e}{'' if error < 4e-3 and logarithm < 1e-3 else '  WRONG'}", flush=True)
    if options.only_check:
        return
    copy = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copy {copy:.2f} TB/s")
    rows, cases = [], [replace(case, fp8=options.fp8) for case in CASES]
    for case in cases:
        found = measure(driver, kernels, case, options.flash_mla)
        facts = {"batch": len(case.lengths), "heads": case.heads, "queries": case.queries}
        rows.append({"case": case.name, **facts, **found})
        alone = f"{found['microseconds']:8.1f} us {found['terabytes']:.2f} TB/s {found['teraflops']:4.0f} TFLOP/s"
        alone += f"   after reads {found['microseconds_after_reads']:8.1f} us"
        graphed = f"in a graph {found['graph_microseconds']:8.1f} us {found['graph_terabytes']:.2f} TB/s"
        print(f"{case.name:10} B{len(case.lengths):<4} H{case.heads:<4} q{case.queries}  {alone}   {graphed}", flush=True)
        if theirs := found.get("flash_mla"):
            ways = ("microseconds", "microseconds_after_reads", "graph_microseconds")
            times = "".join(f"{theirs[way]:8.1f} us, {theirs[way] / found[way]:.2f} of ours " for way in ways)
            print(f"{'':10} FlashMLA: {times}  differs by {theirs['differs']:.1e}", flush=True)
    if options.records:
        made = records(torch.cuda.get_device_name().removeprefix("NVIDIA "), date.today().isoformat(), cases, rows)
        options.records.write_text(json.dumps(made, indent=1) + "\n")
    if options.out:
        flags = [flag for flag in sys.argv[1:] if flag in ("--check", "--fp8")] + ["--flash-mla LIBRARY"] * (options.flash_mla is not None)
        command = " ".join(["python benchmarks/mla_decode.py", *flags])
        found = {"command": command, **gpu_machine.facts(), "copy_terabytes": copy, "checks": checks, "cases": rows}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
