"""Attention over paged caches on a GPU beside torch's: `python benchmarks/gpu_attention.py [--json FILE]
[--flash-3 LIBRARY] [--small|--tiles|--check]`.

torch's caches are contiguous. At the shapes of a layer of Llama 3 8B (32 heads, 8 of keys, 128 wide, bf16). Decoding reads keys and values
once: shares are of the rate of a copy. A prompt's shares are of the rate of a product of 8,192 cubed. Both rates are measured in the same
run. Times are those of one call in a graph of ten, whose launches overlap as a program's do, with so many different caches that none is
still in the device's own. torch's contenders are those of `scaled_dot_product_attention`: flash and cuDNN, to which a decode is a batch of
four rows for each head of keys. FlashAttention 3 reads the paged cache as ours does (`gpu_peers.py`). Prompts are timed with Triton's
kernel alone, too, where another is ours.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gpu_peers
import torch
from gpu_machine import machine
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from triton_kernels import launcher, microseconds, paged, randn

from tskernels.gpu import attention, split_attention
from tskernels.registry import op_named

KEYS, GROUP, WIDTH, PAGE = 8, 4, 128, 64
DECODES = ((1, 8192), (1, 32768), (4, 8192), (16, 4096), (16, 8192), (64, 4096), (64, 8192), (4, 65536))
PROMPTS = ((1, 2048), (1, 4096), (1, 8192), (4, 2048))
TILES = (
    *((128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (128, 32, 8, 3), (128, 64, 4, 2)),
    *((64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (64, 128, 8, 3)),
)
"""Rows, keys, warps and stages."""
_IN_CACHE = 1 << 28
"""Bytes that no device's cache holds."""
CONTENDERS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
CHECKS = (
    ((8, 4, 128), [(0, 2048)], 64, 0),
    ((8, 4, 128), [(0, 1000), (4000, 500), (300, 1), (77, 3), (0, 33)], 64, 2),
    ((8, 4, 128), [(5000, 200)], 16, 0),
    ((8, 4, 128), [(2000, 1)] * 16 + [(0, 1000), (4000, 500)], 128, 3),
    ((4, 7, 128), [(300, 400), (0, 129)], 32, 1),
    ((3, 3, 64), [(100, 700), (3, 200), (50, 1)], 48, 3),
    ((2, 1, 128), [(0, 3000), (1000, 130)], 64, 0),
    ((1, 48, 128), [(10, 90), (700, 300)], 8, 2),
    ((8, 8, 64), [(0, 2000), (20000, 256)], 64, 0),
)
"""Heads of keys, heads to each and their width; tokens before and new ones of each sequence; a page; rows of no sequence before each."""
MOST_ERROR = 4e-3
"""Of a result in bf16, relative."""


def our_kernel() -> str:
    return "cuda" if torch.cuda.get_device_capability() == (9, 0) else "triton"


def case(
    count: int, length: int, rates: dict[str, Any], *, is_prompt: bool, only: str = "", flash_3: Path | None = None, once: bool = False
) -> dict[str, Any]:
    """One shape: microseconds and shares of each contender, or of one kernel of ours, and how far ours is from theirs. once: not
    timed."""
    sequences = [(0, length) if is_prompt else (length - 1, 1)] * count
    spans, lengths, tables, pages = paged(sequences, PAGE)
    tokens = int(spans[-1, 1])
    moved = count * length * KEYS * WIDTH * 4.0
    copies = 1 if is_prompt else max(1, min(10, -int(-_IN_CACHE // moved)))
    attributes = {"scale": WIDTH**-0.5, "window": 0, "softcap": 0.0}
    kernels = {"ours": only or our_kernel()} | ({"triton": "triton"} if is_prompt and not only and our_kernel() != "triton" else {})
    contenders: dict[str, list[Callable[[], Any]]] = {name: [] for name in kernels}
    outs, theirs = [], []
    if flash_3:
        contenders["flash_3"] = []
    for _ in range(copies):
        q, cache = randn(tokens, KEYS, GROUP, WIDTH), randn(pages, PAGE, 2, KEYS, WIDTH)
        out = torch.empty_like(q)
        for name, kernel in kernels.items():
            result = out if name == "ours" else torch.empty_like(q)
            contenders[name].append(launcher("ts::attention", kernel, (q, cache, spans, lengths, tables, 0), result, attributes))
        outs.append(out)
        if flash_3:
            rows = q.view(count, -1, KEYS * GROUP, WIDTH)
            contenders["flash_3"].append(gpu_peers.flash_3(flash_3, rows, cache, tables.cuda(), lengths.cuda(), WIDTH**-0.5))
        theirs.append(_contiguous(q, cache, tables, count, length, is_prompt=is_prompt))
    work = 2.0 * count * length * length * KEYS * GROUP * WIDTH if is_prompt else moved  # half of the products are masked
    best = rates["matmul_tflops"] * 1e6 if is_prompt else rates["copy_gb_per_second"] * 1e3
    found: dict[str, Any] = {"kind": "prompt" if is_prompt else "decode", "sequences": count, "tokens": length}
    for name, backend in CONTENDERS.items() if not only else ():
        contenders[name] = [_with(backend, *one, is_prompt=is_prompt) for one in theirs]
    for name, calls in contenders.items():
        try:
            result = calls[0]()
            micros = math.nan if once else microseconds(*calls)
        except RuntimeError as problem:
            found[name] = {"failed": str(problem)[-300:]}
            continue
        found[name] = {"us": micros, "share": work / micros / best}
        mine = outs[0].view(count, -1, KEYS * GROUP, WIDTH).float()
        if name in CONTENDERS:
            mine = mine.transpose(1, 2).reshape(result.shape)
        if name not in kernels:
            found[name]["differs"] = float((mine - result.float()).norm() / result.float().norm())
    return found


def sweep(rates: dict[str, Any], count: int = 1, length: int = 4096) -> list[dict[str, Any]]:
    """A prompt with other tiles of many rows: what each takes."""
    found = []
    for rows, keys, warps, stages in TILES:
        tiles = split_attention.Tiles(split_attention.Tile(16, 64, 4, 2), split_attention.Tile(rows, keys, warps, stages), 32, 2, 2)
        with mock.patch.object(attention, "_tiles", return_value=tiles):
            try:
                one = case(count, length, rates, is_prompt=True, only="triton")["ours"]
            except Exception as problem:  # a compiler's, of what asks for more than there is
                one = {"failed": str(problem)[-200:]}
        found.append({"rows": rows, "keys": keys, "warps": warps, "stages": stages, **one})
        took = f"{one['us']:8.1f} us {one['share']:4.0%}" if "us" in one else one["failed"][:90]
        print(f"tiles of {rows} x {keys}, {warps} warps, {stages} stages: {took}", flush=True)
    return found


def _contiguous(q: Tensor, cache: Tensor, tables: Tensor, count: int, length: int, *, is_prompt: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same numbers as torch wants them."""
    kept = cache[tables.long()].reshape(count, -1, 2, KEYS, WIDTH)[:, :length]
    keys, values = (kept[:, :, n].transpose(1, 2).contiguous() for n in (0, 1))
    if not is_prompt:
        return q.view(count, KEYS, GROUP, WIDTH), keys, values
    return q.view(count, length, KEYS * GROUP, WIDTH).transpose(1, 2).contiguous(), keys, values


def _with(backend: SDPBackend, q: Tensor, keys: Tensor, values: Tensor, *, is_prompt: bool) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, keys, values, is_causal=is_prompt, enable_gqa=is_prompt)

    return call


def check() -> bool:
    """Against the reference in f64: rows of a wider value, NaN past the end of each sequence, the same bits twice."""
    good = True
    for (heads, group, width), sequences, page, gap in CHECKS:
        spans, lengths, tables, pages = paged(sequences, page)
        spans += gap * torch.arange(1, len(spans) + 1, dtype=torch.int32)[:, None]
        q = randn(int(spans[-1, 1]) + gap, heads * group + 16, width)[:, : heads * group].view(-1, heads, group, width)
        cache = randn(pages, page, 2, heads, width)
        for table, length in zip(tables, lengths.tolist(), strict=True):
            cache[int(table[(length - 1) // page]), (length - 1) % page + 1 :] = torch.nan
        out, attributes = torch.full(q.shape, torch.nan, dtype=q.dtype), {"scale": width**-0.5, "window": 0, "softcap": 0.0}
        run = launcher("ts::attention", our_kernel(), (q, cache, spans, lengths, tables, 0), out, attributes)
        first = out.clone()
        run()
        expected = op_named("ts::attention").reference(q.double(), cache.double(), spans, lengths, tables, 0, **attributes)
        error = float((out.double() - expected).norm() / expected.norm())
        nothing = expected.abs().amax((1, 2, 3)) == 0
        is_good = error < MOST_ERROR and torch.equal(first, out) and not out[nothing].any()
        good &= is_good
        print(f"{'ok   ' if is_good else 'WRONG'} {error:.1e} {heads} x {group} x {width}, page {page}, {sequences[-2:]}", flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--flash-3", metavar="LIBRARY", type=Path, help="FlashAttention 3's, timed beside")
    parser.add_argument("--tiles", action="store_true", help="only a prompt, with other tiles")
    parser.add_argument("--check", action="store_true", help="only whether it is right")
    parser.add_argument("--small", action="store_true", help="one small shape of each kind, once, as for compute-sanitizer")
    options = parser.parse_args()
    if options.check:
        torch.manual_seed(0)
        torch.set_default_device("cuda")
        raise SystemExit(not check())
    rates = {"matmul_tflops": 1.0, "copy_gb_per_second": 1.0} if options.small else machine()
    print(json.dumps(rates), flush=True)
    torch.manual_seed(0)
    torch.set_default_device("cuda")
    if options.tiles:
        sweep(rates)
        return
    decodes, given = (((2, 300),), ((1, 200),)) if options.small else (DECODES, PROMPTS)
    only = our_kernel() if options.small else ""
    found = [
        case(*shape, rates, is_prompt=is_prompt, only=only, flash_3=options.flash_3, once=options.small)
        for is_prompt, shapes in ((False, decodes), (True, given))
        for shape in shapes
    ]
    for one in found:
        parts = [
            f"{name} {one[name]['us']:8.1f} us {one[name]['share']:4.0%}"
            for name in ("ours", "triton", *CONTENDERS, "flash_3")
            if "us" in one.get(name, {})
        ]
        most = max((one[name].get("differs", 0.0) for name in (*CONTENDERS, "flash_3") if name in one), default=0.0)
        print(f"{one['kind']:7} {one['sequences']:3} x {one['tokens']:6}  {'   '.join(parts)}   differ by {most:.1e}", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            command = "python benchmarks/gpu_attention.py" + " --flash-3 LIBRARY" * (options.flash_3 is not None)
            json.dump({"command": command, "machine": rates, "cases": found}, file, indent=1)


if __name__ == "__main__":
    main()
