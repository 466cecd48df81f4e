"""Plans of mixtures of experts: routing, and the experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tskernels.cost import experts_bound
from tskernels.dtypes import size_bytes
from tskernels.gpu.launch import Argument, Launch, Number, Operand, Out, Plan, Scalar, Scratch, ScratchSpace, Variant
from tskernels.gpu.sizes import Dimension, cdiv
from tskernels.gpu.triton_entry import is_nvidia, number, only, padded, plan, rows, size, source, stride, triton_kernel
from tskernels.registry import Call, one_float_type
from tskernels.target import Target

SLOTS: Final = 16
"""Experts that a token may have: room is set aside for the results of all. A token with more becomes NaN."""
_LISTED: Final = 256
_ADDED: Final = 1024


@triton_kernel("ts::route")
def route(call: Call, target: Target) -> Plan:
    experts, groups = size(call, 0, 1), int(number(call, "groups"))
    has_bias = len(call.operands) > 1
    arguments: dict[str, Argument] = {"logits": Operand(0), "bias": Operand(1 if has_bias else 0), "out": Out(), "x_token": stride(0, 0)}
    constants: dict[str, Number | str] = {
        "HAS_BIAS": has_bias,
        "EXPERTS": experts,
        "GROUPS": groups,
        "GROUPS_PADDED": padded(groups),
        "MEMBERS_PADDED": padded(experts // groups),
        "TOP": int(number(call, "top_k")),
        "TOP_GROUPS": int(number(call, "top_groups")),
        "GROUP_BEST": int(number(call, "group_best")),
        "SIGMOID": call.attributes["score"] == "sigmoid",
        "NORMALIZE": bool(call.attributes["normalize"]),
        "SCALE": number(call, "scale"),
    }
    dtype = call.operands[0].dtype
    types = {"logits": dtype, "bias": call.operands[-1].dtype, "out": dtype}
    return plan(Launch(source("mixture", "route"), (rows(), 1, 1), arguments, constants, types, 1, 1, dependent=True))


@dataclass(frozen=True, slots=True)
class Tile:
    """Pairs, outputs and inputs that a block takes at a time, in steps of `tokens` tokens and more."""

    tokens: int
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def _tiles(call: Call, target: Target) -> list[Tile]:
    if call.operands[0].dtype == "f32":
        return [Tile(1, 16, 32, 32, 4, 2)]
    stages = 3 if is_nvidia(target) else 2
    # A token is one expert's now and then: those of a small step share few.
    return [Tile(1, 16, 32, 128, 4, stages), Tile(256, 64, 64, 64, 4, stages)]


@triton_kernel("ts::experts", when=one_float_type, cost=experts_bound)
def experts(call: Call, target: Target) -> Plan:
    """Tokens are listed by experts; each takes its own, and what it makes of them is added up token by token, in a fixed order."""
    count, inner, outer = size(call, 2, 0), size(call, 2, 1), size(call, 2, 2)
    slots, dtype, tokens = min(SLOTS, count), call.operands[0].dtype, Dimension(0, 0)
    has_bias = len(call.operands) > 5
    places: dict[str, Argument] = {name: ScratchSpace(name) for name in ("places", "counts", "pairs", "lengths", "inner", "made")}
    given: dict[str, Argument] = {
        "x": Operand(0),
        "weights": Operand(1),
        "gate": Operand(2),
        "up": Operand(3),
        "w": Operand(4),
        "out": Out(),
        **{name: Operand(i if has_bias else 0) for i, name in ((5, "gate_bias"), (6, "up_bias"), (7, "bias"))},
        "tokens": Scalar(tokens),
        "x_token": stride(0, 0),
        "w_token": stride(1, 0),
        **places,
    }
    types = {
        **dict.fromkeys(("x", "weights", "gate", "up", "w", "out", "gate_bias", "up_bias", "bias", "inner"), dtype),
        **dict.fromkeys(("places", "counts", "pairs", "lengths"), "i32"),
        "made": "f32",
    }
    sizes: dict[str, Number | str] = {"HAS_BIAS": has_bias, "OUTER": outer, "INNER": inner, "SLOTS": slots}
    gating = {name.upper(): call.attributes.get(name, default) for name, default in (("alpha", 1.0), ("limit", 0.0), ("offset", 0.0))}

    def launch(function: str, grid: tuple[object, ...], names: str, constants: dict[str, object], warps: int, stages: int) -> Launch:
        arguments = {name: given[name] for name in names.split()}
        kinds, dependent = only(types, arguments), function not in ("gate_and_up", "down")
        return Launch(source("mixture", function), grid, arguments, constants, kinds, warps, stages, dependent=dependent)  # type: ignore[arg-type]

    listed = (
        launch("place_pairs", (tokens, 1, 1), "weights places counts w_token", {"EXPERTS": count, "PADDED": padded(count)}, 4, 1),
        launch(
            "list_pairs",
            (count, 1, 1),
            "weights places pairs lengths tokens w_token",
            {"EXPERTS": count, "SLOTS": slots, "BLOCK": _LISTED},
            4,
            1,
        ),
    )
    block = min(_ADDED, padded(outer))
    added = launch("add_pairs", (tokens, cdiv(outer, block), 1), "made counts out", {"OUTER": outer, "SLOTS": slots, "BLOCK": block}, 4, 1)
    variants = []
    for t in _tiles(call, target):
        tile = {"ROWS": t.rows, "COLUMNS": t.columns, "DEPTH": t.depth}
        first = launch(
            "gate_and_up",
            (cdiv(inner, t.columns), count, 1),
            "x gate up gate_bias up_bias inner pairs lengths tokens x_token",
            {**sizes, **gating, **tile},
            t.warps,
            t.stages,
        )
        second = launch(
            "down",
            (cdiv(outer, t.columns), count, 1),
            "inner weights w bias made pairs lengths tokens w_token",
            {**sizes, **tile},
            t.warps,
            t.stages,
        )
        variants.append(Variant((*listed, first, second, added), t.tokens))
    scratch = (
        Scratch("places", tokens * (count * 4)),
        Scratch("counts", tokens * 4),
        Scratch("pairs", tokens * (count * 4)),
        Scratch("lengths", count * 4),
        Scratch("inner", tokens * (slots * inner * size_bytes(dtype))),
        Scratch("made", tokens * (slots * outer * 4)),
    )
    return Plan(tuple(variants), scratch)
