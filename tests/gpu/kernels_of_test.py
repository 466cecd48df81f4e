"""The test kernels with operands of theirs: what each computes, beside its reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tskernels.emulator import Report, TensorMap, Uninitialized, launch

FOLDER = Path(__file__).parent / "ptx"
Array = NDArray[Any]


def to_bf16(x: Array) -> Array:
    """f32 rounded to bf16, as uint16."""
    return torch.from_numpy(np.asarray(x, np.float32)).bfloat16().view(torch.uint16).numpy()


def from_bf16(x: Array) -> Array:
    return torch.from_numpy(x.copy()).view(torch.bfloat16).double().numpy()


def to_fp8(x: Array) -> Array:
    """f32 rounded to e4m3, as uint8."""
    return torch.from_numpy(np.asarray(x, np.float32)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def from_fp8(x: Array) -> Array:
    return torch.from_numpy(x.copy()).view(torch.float8_e4m3fn).double().numpy()


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def difference(found: Array, expected: Array) -> float:
    """Relative, of the whole; infinite where something is no number."""
    with np.errstate(all="ignore"):
        error = float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))
    return error if np.isfinite(error) else float("inf")


@cache
def text(name: str) -> str:
    return (FOLDER / f"{name}.ptx").read_text()


@dataclass(frozen=True)
class Kernel:
    """`run(ptx)` gives the error of the kernel's result and the report."""

    name: str
    run: Callable[[str], tuple[float, Report]]
    most: float  # error of a right result


def _softmax_sum(q: Array, kv: Array, scale: float) -> Array:
    weights = np.exp2(q @ kv.T * scale)
    expected: Array = weights @ kv / weights.sum(1, keepdims=True)
    return expected


def attention_sm90(ptx: str, tiles: int = 5, blocks: int = 1) -> tuple[float, Report]:
    q, kv = to_bf16(normal(64 * blocks, 64, seed=0)), to_bf16(normal(64 * tiles, 64, seed=1))
    out = np.empty((64 * blocks, 64), np.float32)
    maps = TensorMap(q, (64, 64)), TensorMap(kv, (64, 64))
    report = launch(ptx, "attention", blocks, 160, [*maps, Uninitialized(out), tiles, 0.1], shared_bytes=25600)
    return difference(out, _softmax_sum(from_bf16(q), from_bf16(kv), 0.1)), report


def attention_sm100(ptx: str, tiles: int = 5, blocks: int = 1) -> tuple[float, Report]:
    q, kv = to_bf16(normal(128 * blocks, 64, seed=2)), to_bf16(normal(64 * tiles, 64, seed=3))
    out = np.zeros((128 * blocks, 64), np.uint16)
    maps = TensorMap(q, (128, 64)), TensorMap(kv, (64, 64)), TensorMap(out, (128, 64))
    report = launch(ptx, "attention", blocks, 192, [*maps, tiles, 0.1], shared_bytes=50176)
    return difference(from_bf16(out), _softmax_sum(from_bf16(q), from_bf16(kv), 0.1)), report


def pair(ptx: str) -> tuple[float, Report]:
    a, b = to_fp8(normal(256, 128, seed=4)), to_fp8(normal(64, 128, seed=5))
    out = np.empty((256, 64), np.float32)
    report = launch(ptx, "pair", 2, 128, [TensorMap(a, (128, 128)), TensorMap(b, (32, 128)), Uninitialized(out)], shared_bytes=25600)
    return difference(out, from_fp8(a) @ from_fp8(b).T), report


def narrow(ptx: str) -> tuple[float, Report]:
    a, b = to_bf16(normal(64, 64, seed=6)), to_bf16(normal(64, 64, seed=7))
    out = np.empty((64, 64), np.float32)
    report = launch(ptx, "narrow", 1, 128, [TensorMap(a, (64, 64)), TensorMap(b, (64, 64)), Uninitialized(out)], shared_bytes=25600)
    return difference(out, from_bf16(a) @ from_bf16(b).T), report


KERNELS = {
    "attention_sm90": Kernel("attention_sm90", attention_sm90, 3e-3),
    "attention_sm100": Kernel("attention_sm100", attention_sm100, 5e-3),
    "pair_sm100": Kernel("pair_sm100", pair, 1e-6),
    "narrow_sm100": Kernel("narrow_sm100", narrow, 1e-6),
}
