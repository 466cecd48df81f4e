"""Attention over paged caches on a GPU beside torch's: `python benchmarks/gpu_attention.py [--json FILE] [--small|--tiles]`.

torch's caches are contiguous. At the shapes of a layer of Llama 3 8B (32 heads, 8 of keys, 128 wide, bf16). Decoding reads keys and values
once: shares are of the rate of a copy. A prompt's shares are of the rate of a product of 8,192 cubed. Both rates are measured in the same
run. Times are those of one call in a graph of ten, with so many different caches that none is still in the device's own. torch's contenders
are those of `scaled_dot_product_attention`: flash and cuDNN, to which a decode is a batch of four rows for each head of keys.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from gpu_machine import machine
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from triton_kernels import launcher, microseconds, paged, randn

from tskernels.gpu import attention

KEYS, GROUP, WIDTH, PAGE = 8, 4, 128, 64
DECODES = ((1, 8192), (1, 32768), (4, 8192), (16, 4096), (16, 8192), (64, 4096), (64, 8192))
PROMPTS = ((1, 2048), (1, 4096), (1, 8192), (4, 2048))
TILES = (
    *((128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (128, 32, 8, 3), (128, 64, 4, 2)),
    *((64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (64, 128, 8, 3)),
)
"""Rows, keys, warps and stages."""
_IN_CACHE = 1 << 28
"""Bytes that no device's cache holds."""
CONTENDERS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def case(count: int, length: int, rates: dict[str, Any], *, is_prompt: bool, only: str = "") -> dict[str, Any]:
    """One shape: microseconds and shares of each contender, or of one, and how far ours is from torch's."""
    sequences = [(0, length) if is_prompt else (length - 1, 1)] * count
    spans, lengths, tables, pages = paged(sequences, PAGE)
    tokens = int(spans[-1, 1])
    moved = count * length * KEYS * WIDTH * 4.0
    copies = 1 if is_prompt else max(1, min(10, -int(-_IN_CACHE // moved)))
    attributes = {"scale": WIDTH**-0.5, "window": 0, "softcap": 0.0}
    ours, theirs = [], []
    for _ in range(copies):
        q, cache = randn(tokens, KEYS, GROUP, WIDTH), randn(pages, PAGE, 2, KEYS, WIDTH)
        out = torch.empty_like(q)
        ours.append((launcher("ts::attention", "triton", (q, cache, spans, lengths, tables, 0), out, attributes), out))
        theirs.append(_contiguous(q, cache, tables, count, length, is_prompt=is_prompt))
    work = 2.0 * count * length * length * KEYS * GROUP * WIDTH if is_prompt else moved  # half of the products are masked
    best = rates["matmul_tflops"] * 1e6 if is_prompt else rates["copy_gb_per_second"] * 1e3
    found: dict[str, Any] = {"kind": "prompt" if is_prompt else "decode", "sequences": count, "tokens": length}
    contenders: dict[str, list[Callable[[], Any]]] = {"ours": [launch for launch, _ in ours]}
    for name, backend in CONTENDERS.items() if not only else ():
        contenders[name] = [_with(backend, *one, is_prompt=is_prompt) for one in theirs]
    for name, calls in contenders.items():
        try:
            result = calls[0]()
            micros = microseconds(*calls)
        except RuntimeError as problem:
            found[name] = {"failed": str(problem)[-300:]}
            continue
        found[name] = {"us": micros, "share": work / micros / best}
        if name != "ours":
            mine = ours[0][1].view(count, -1, KEYS * GROUP, WIDTH).transpose(1, 2).reshape(result.shape).float()
            found["difference"] = float((mine - result.float()).norm() / result.float().norm())
    return found


def sweep(rates: dict[str, Any], count: int = 1, length: int = 4096) -> list[dict[str, Any]]:
    """A prompt with other tiles of many rows: what each takes."""
    found = []
    for rows, keys, warps, stages in TILES:
        tiles = attention.Tiles(attention.Tile(16, 64, 4, 2), attention.Tile(rows, keys, warps, stages), 32, 2)
        with mock.patch.object(attention, "_tiles", return_value=tiles):
            try:
                one = case(count, length, rates, is_prompt=True, only="ours")["ours"]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--tiles", action="store_true", help="only a prompt, with other tiles")
    parser.add_argument("--small", action="store_true", help="one small shape of each kind, as for compute-sanitizer")
    options = parser.parse_args()
    rates = {"matmul_tflops": 1.0, "copy_gb_per_second": 1.0} if options.small else machine()
    print(json.dumps(rates), flush=True)
    torch.manual_seed(0)
    torch.set_default_device("cuda")
    if options.tiles:
        sweep(rates)
        return
    decodes, given = (((2, 300),), ((1, 200),)) if options.small else (DECODES, PROMPTS)
    only = "ours" if options.small else ""
    found = [
        case(*shape, rates, is_prompt=is_prompt, only=only) for is_prompt, shapes in ((False, decodes), (True, given)) for shape in shapes
    ]
    for one in found:
        parts = [
            f"{name} {one[name]['us']:8.1f} us {one[name]['share']:4.0%}" for name in ("ours", *CONTENDERS) if "us" in one.get(name, {})
        ]
        difference = f"{one.get('difference', float('nan')):.1e}"
        print(f"{one['kind']:7} {one['sequences']:3} x {one['tokens']:6}  {'   '.join(parts)}   differs by {difference}", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"command": "python benchmarks/gpu_attention.py", "machine": rates, "cases": found}, file, indent=1)


if __name__ == "__main__":
    main()
