"""Latent attention of a chunk of new tokens on many cached ones, on a device: absorbed beside expanded.

`python benchmarks/mla_prefill.py [--json FILE] [--tiles] [--quick]`; needs a GPU with Triton, and with `TRITON_INTERPRET=1` and `--tiny`
none. Shapes are DeepSeek V3's: 512 + 64 latent elements, heads of 128 + 64 and 128. Prints whether results agree with float64 (ragged steps
whole, large ones by some rows and heads); then for each case the milliseconds of what a model runs, absorbed (two products with
up-projections and attention between) and expanded (the same, and the expanded rows on top), of the expanded op alone, and by it the
TFLOP/s of the useful work: two products of each query with the keys and values that it sees. `--tiles` times other tile sizes;
`--processes` compiles with so many at first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from triton_kernels import launcher, paged, planned

from tskernels.expansion import break_even
from tskernels.gpu import expanded_attention as planner
from tskernels.registry import lookup, op_named

LATENT, ROTATED, CONTENT, VALUES = 512, 64, 128, 128
SCALE = (CONTENT + ROTATED) ** -0.5
BREAK_EVEN = break_even(CONTENT, ROTATED, LATENT, VALUES)
WORST = 4 * 2.0**-8
"""Of the norm: keys, values, weights and results are rounded to bf16."""
Sequences = list[tuple[int, int]]
"""Tokens before, new tokens."""


@dataclass(frozen=True)
class Case:
    """The operands of a step."""

    sequences: Sequences
    content: Tensor
    rotated: Tensor
    cache: Tensor
    k_up: Tensor
    v_up: Tensor
    step: tuple[Tensor, Tensor, Tensor, int]

    @property
    def useful_flops(self) -> float:
        pairs = sum(new * before + new * (new + 1) / 2 for before, new in self.sequences)
        return 2.0 * pairs * self.content.shape[1] * (CONTENT + ROTATED + VALUES)

    def empty(self, width: int) -> Tensor:
        """Of the queries' tokens and heads, full of NaN."""
        out = torch.empty(*self.content.shape[:2], width, dtype=self.content.dtype)
        out.view(torch.uint8).fill_(255)
        return out


def make(sequences: Sequences, heads: int, page: int) -> Case:
    spans, lengths, tables, pages = paged(sequences, page)
    q = torch.randn(int(spans[-1, 1]), heads, CONTENT + ROTATED, dtype=torch.bfloat16)
    up = torch.randn(heads, CONTENT + VALUES, LATENT, dtype=torch.bfloat16) * LATENT**-0.5
    cache = torch.randn(pages, page, LATENT + ROTATED, dtype=torch.bfloat16)
    tables = torch.nn.functional.pad(tables, (0, -tables.shape[1] % 16))  # of other widths functions are compiled again
    step = (spans, lengths, tables, 0)
    return Case(sequences, q[..., :CONTENT], q[..., CONTENT:].contiguous(), cache, up[:, :CONTENT], up[:, CONTENT:], step)


Stages = dict[str, Callable[[], None]]
Asked = tuple[str, str, tuple[Any, ...], Tensor, dict[str, Any]]
"""Op, kernel, operands, result, attributes."""


def attention_of(case: Case, absorbed: Tensor, mixed: Tensor, result: Tensor, expanded_from: int) -> dict[str, Asked]:
    """The calls of our kernels, by op."""
    given: dict[str, Any] = {"scale": SCALE, "window": 0, "expanded_from": expanded_from}
    found: dict[str, Asked] = {
        "latent_attention": ("ts::latent_attention", "triton", (absorbed, case.rotated, case.cache, *case.step), mixed, given)
    }
    if expanded_from:
        operands = (result, case.content, case.rotated, case.cache, case.k_up, case.v_up, *case.step)
        given = {"scale": SCALE, "expanded_from": expanded_from}
        found["expanded_attention"] = ("ts::expanded_attention", "triton", operands, result, given)
    return found


def stages(case: Case, expanded_from: int) -> tuple[Stages, Tensor]:
    """What a model runs of attention, in order, and the result; expanded_from 0: all absorbed."""
    absorbed, mixed, result = case.empty(LATENT), case.empty(LATENT), case.empty(VALUES)
    product = lookup("ts::einsum", "torch").function
    work: Stages = {"absorb": lambda: product(case.content, case.k_up, equation="tha,hac->thc", out=absorbed)}
    for name, asked in attention_of(case, absorbed, mixed, result, expanded_from).items():
        work[name] = launcher(*asked)
        if name == "latent_attention":
            work["up"] = lambda: product(mixed, case.v_up, equation="thc,hec->the", out=result)
    return work, result


def run(work: Stages, result: Tensor) -> Tensor:
    for stage in work.values():
        stage()
    return result


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def whole(case: Case) -> Tensor:
    """In f64, by the definition: absorbed."""
    wide = [x.double() if x.is_floating_point() else x for x in (case.content, case.rotated, case.cache, case.k_up, case.v_up)]
    absorbed = torch.einsum("tha,hac->thc", wide[0], wide[3])
    mixed = op_named("ts::latent_attention").reference(absorbed, *wide[1:3], *case.step, scale=SCALE, window=0)
    return torch.einsum("thc,hec->the", mixed, wide[4])


def sampled(case: Case, result: Tensor) -> float:
    """The relative error of some rows of the first and the last head, of a step of one sequence."""
    [(before, new)] = case.sequences
    rows = sorted({0, 1, new // 3, new // 2, new - 2, new - 1} & set(range(new)))
    latents = case.cache[case.step[2][0].long()].flatten(0, 1)[: before + new].double()
    found, expected = [], []
    for head in {0, case.content.shape[1] - 1}:
        keys = torch.cat((latents[:, :LATENT] @ case.k_up[head].double().T, latents[:, LATENT:]), 1)
        queries = torch.cat((case.content[rows, head], case.rotated[rows, head]), 1).double()
        scores = queries @ keys.T * SCALE
        position = torch.tensor([before + row for row in rows])
        scores.masked_fill_(torch.arange(before + new)[None, :] > position[:, None], -torch.inf)
        expected.append(scores.softmax(-1) @ (latents[:, :LATENT] @ case.v_up[head].double().T))
        found.append(result[rows, head])
    return relative(torch.stack(found), torch.stack(expected))


def milliseconds(work: Callable[[], None]) -> float:
    """The median of as many runs as take half a second, three at least."""
    if not torch.cuda.is_available():
        started = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - started)
    event: Any = torch.cuda.Event

    def once() -> float:
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))

    once()
    first = once()
    return statistics.median([first, *(once() for _ in range(min(20, max(2, int(500 / first)))))])


def check(heads: int, tiny: bool) -> bool:
    """Ragged steps against float64, whole."""
    good = True
    steps: list[Sequences] = [[(70, 30), (40, 1)]] if tiny else [[(0, 300), (1000, 1), (500, 171), (33, 170), (64, 200)], [(2000, 513)]]
    for sequences in steps:
        for page in (32, 64):
            for expanded_from in (1, 30 if tiny else BREAK_EVEN):
                case = make(sequences, heads, page)
                error = relative(run(*stages(case, expanded_from)), whole(case))
                good &= error < WORST
                verdict = "ok   " if error < WORST else "WRONG"
                print(f"{verdict} H{heads} page {page} from {expanded_from} {sequences}: relative error {error:.2e}", flush=True)
    return good


def measure(before: int, new: int, heads: int) -> dict[str, Any]:
    case = make([(before, new)], heads, 64)
    both = {name: stages(case, from_) for name, from_ in (("absorbed", 0), ("expanded", 1))}
    row: dict[str, Any] = {"heads": heads, "cached": before, "chunk": new}
    for name, (work, result) in both.items():
        parts = {stage: milliseconds(one) for stage, one in work.items()}
        row |= {f"{name}_ms": sum(parts.values()), f"{name}_parts": parts}
        row[f"{name}_error"] = sampled(case, run(work, result))
    alone = row["expanded_parts"]["expanded_attention"]
    row["op_ms"], row["tflops"] = alone, case.useful_flops / alone / 1e9
    row["absorbed_tflops"] = case.useful_flops / row["absorbed_parts"]["latent_attention"] / 1e9
    row["good"] = max(row["absorbed_error"], row["expanded_error"]) < WORST
    verdict = "ok   " if row["good"] else "WRONG"
    absorbed = f"absorbed {row['absorbed_ms']:9.3f} ms (attention {row['absorbed_tflops']:4.0f} useful TFLOP/s)"
    expanded = f"expanded {row['expanded_ms']:9.3f} ms (the op {alone:9.3f} ms, {row['tflops']:4.0f} TFLOP/s)"
    times = row["absorbed_ms"] / row["expanded_ms"]
    print(f"{verdict} H{heads:<3} {new:5} on {before:6}: {absorbed}, {expanded}, {times:5.2f} times as fast", flush=True)
    return row


ATTENDING = ((128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 32, 8, 4), (64, 64, 4, 2), (64, 64, 4, 3))
TILES = (*((*one, 128, 64) for one in ATTENDING), (128, 64, 8, 3, 128, 128), (128, 64, 8, 3, 64, 64))


def tiles(before: int, new: int) -> list[dict[str, Any]]:
    """Other tiles than the plan's, of 16 heads."""
    found = []
    case = make([(before, new)], 16, 64)
    for shape in TILES:
        label = "{} rows, {} keys, {} warps, {} stages, expanding {} x {}".format(*shape)
        try:
            with patch.object(planner, "_tile", return_value=planner.Tile(*shape)):
                work, _ = stages(case, 1)
            time_ms = milliseconds(work["expanded_attention"])
            print(f"{label}: {time_ms:.3f} ms, {case.useful_flops / time_ms / 1e9:.0f} TFLOP/s", flush=True)
            found.append({"tile": label, "ms": time_ms})
        except Exception as problem:  # too large for the device
            print(f"{label}: {type(problem).__name__}: {str(problem)[-200:]}", flush=True)
    return found


def functions(with_tiles: bool) -> Iterator[Callable[[], None]]:
    """Of each that is compiled for the measurements one launch."""
    for heads in (16, 128):
        case = make([(1024, 512)], heads, 64)
        buffers = [case.empty(width) for width in (LATENT, LATENT, VALUES)]
        [latent, expanded] = attention_of(case, *buffers, 1).values()
        asked = [(None, latent), (None, expanded)]
        asked += [(planner.Tile(*shape), expanded) for shape in TILES if with_tiles and heads == 16]
        seen = set()
        for tile, (op, kernel, operands, out, attributes) in asked:
            with patch.object(planner, "_tile", planner._tile if tile is None else lambda call, target, tile=tile: tile):
                launch, launches = planned(op, kernel, operands, out, attributes)
            for one in launches:
                # Triton compiles again for numbers that are multiples of 16.
                head = one.arguments.get("first_head")
                key = (one.source, str(sorted(one.constants.items())), one.warps, one.stages, _is_odd(head))
                if key not in seen:
                    seen.add(key)
                    yield lambda launch=launch, one=one: launch(one)


def _is_odd(head: Any) -> bool:
    return head is not None and bool(head.value % 16)


def compile_share(share: int, processes: int, with_tiles: bool) -> None:
    """Every so manieth function; what is too large for the device is told later."""
    for number, run in enumerate(functions(with_tiles)):
        if number % processes == share:
            try:
                run()
            except Exception as problem:
                print(f"{type(problem).__name__}: {str(problem)[-100:]}", flush=True)


def compile_all(processes: int, with_tiles: bool) -> None:
    started = time.perf_counter()
    command = [sys.executable, __file__, *(["--tiles"] if with_tiles else []), "--processes", str(processes), "--share"]
    running = [subprocess.Popen([*command, str(share)], env={**os.environ, "OMP_NUM_THREADS": "1"}) for share in range(processes)]
    for process in running:
        process.wait()
    print(f"compiled in {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--tiles", action="store_true", help="time other tile sizes, too")
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="compile with so many at first")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help="two small steps alone, which an interpreter can run")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.processes and options.share is None:
        compile_all(options.processes, options.tiles)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    if options.share is not None:
        return compile_share(options.share, options.processes, options.tiles)
    name = torch.cuda.get_device_name() if device == "cuda" else "interpreter"
    print(name, torch.__version__, flush=True)
    good = min([check(heads, options.tiny) for heads in ((2,) if options.tiny else (16, 128))])
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "results": []}
    if options.tiny:
        shapes = [(2, 100, 20)]
    elif options.quick:
        shapes = [(heads, before, new) for heads in (16, 128) for before in (8192, 81920) for new in (512, 4096)]
    else:
        shapes = [(heads, before, new) for heads in (16, 128) for before in (0, 8192, 32768, 131072) for new in (256, 512, 2048, 8192)]
        shapes += [(16, 32768, new) for new in (96, 128, 171, 192)]
    for heads, before, new in shapes:
        found["results"].append(measure(before, new, heads))
        _write(options.json, found)
        if device == "cuda":
            torch.cuda.empty_cache()
    if options.tiles:
        found["tiles"] = tiles(*((100, 20) if options.tiny else (32768, 4096)))
        _write(options.json, found)
    raise SystemExit(not (good and all(row["good"] for row in found["results"])))


def _write(path: str | None, found: dict[str, Any]) -> None:
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
