"""Kernels of a processor that is not there: what is selected for it is the same wherever a test runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tskernels.cost import expanded_attention_bound, experts_bound, matmul_bound, message_bound, operand_bytes, seconds
from tskernels.layouts import GATED_PANELS, PANELS, SCREEN
from tskernels.registry import Call, Kernel, add_kernel, isolated, one_float_type
from tskernels.target import Target, cpu

MADE_UP = cpu("sve2", "amx_tile")
QUANTIZED = ("q8_0", "q4_0")
TABLES = "q8_0"


def _quicker(call: Call, target: Target) -> float:
    return matmul_bound(call, target) / 2


def _quicker_experts(call: Call, target: Target) -> float:
    return experts_bound(call, target) / 2


def _quicker_where_narrow(call: Call, target: Target) -> float:
    return message_bound(call, target) * (1 if (call.operands[0].shape[-1] or 0) < 1024 else 2)


def _once(call: Call, target: Target) -> float:
    return seconds(target, moved_bytes=2 * operand_bytes(call.operands[0]))


def _function(*_operands: Any, **_attributes: Any) -> None:
    raise AssertionError("a made-up kernel runs nowhere")


def _quicker_step(call: Call, target: Target) -> float:
    return expanded_attention_bound(call, target) / 2


@contextmanager
def made_up_kernels() -> Iterator[None]:
    """Matmuls with weights in panels and in two quantized formats, for MADE_UP; tables in one of them; experts in panels; expanded
    latents; sums over ranks that other ops are joined with, which wide rows are too much for; norms of what is added, and turns of queries
    and keys together."""
    with isolated():
        products = [(PANELS, GATED_PANELS), *((name, f"gated_{name}") for name in QUANTIZED)]
        readers = [(op, layout) for pair in products for op, layout in zip(("ts::linear", "ts::gated_linear"), pair, strict=True)]
        for op, layout in (*readers, ("ts::embedding", TABLES)):
            add_kernel(Kernel(op, layout, "compute", _function, MADE_UP, ("f32", "bf16"), one_float_type, _quicker, __file__, {1: layout}))
        facts = (_function, MADE_UP, ("f32", "bf16"), one_float_type, _quicker_experts, __file__)
        add_kernel(Kernel("ts::experts", PANELS, "compute", *facts, dict.fromkeys((2, 3, 4), PANELS)))
        screened = Kernel("ts::screened_linear", SCREEN, "compute", _function, MADE_UP, ("f32",), None, _quicker, __file__, {2: SCREEN})
        add_kernel(screened)
        expanded = Kernel("ts::expanded_attention", "made_up", "inplace", _function, MADE_UP, ("f32",), None, _quicker_step, __file__)
        add_kernel(expanded)
        for op in ("ts::all_reduce_add", "ts::all_reduce_add_norm"):
            add_kernel(Kernel(op, "made_up", "collective", _function, MADE_UP, ("f32",), None, _quicker_where_narrow, __file__))
        for op in ("ts::add_norm", "ts::qk_rope", "ts::qk_norm_rope"):
            add_kernel(Kernel(op, "made_up", "compute", _function, MADE_UP, ("f32",), None, _once, __file__))
        yield
