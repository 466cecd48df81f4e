"""Predicted seconds of a call, from its shapes and a simple machine description. Only good enough to order candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, prod
from typing import TYPE_CHECKING, Final, cast

from tskernels.dtypes import size_bytes
from tskernels.target import DEVICES, Target

if TYPE_CHECKING:
    from tskernels.registry import Call, Operand

NOMINAL_SIZE: Final = 16
"""What a dimension that is unknown until the step runs counts as."""
LANES: Final = 16
"""Of a vector, in f32."""
PANEL: Final = 32
"""Outputs that the layout `panels` has side by side: `panel_width` of kernels/csrc/panels.hpp."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Peak rates of one rank's device and what it takes to start one kernel."""

    bytes_per_second: float
    flops_per_second: float
    link_bytes_per_second: float
    launch_seconds: float
    message_seconds: float


# An everyday server socket; measurements of a real machine belong into a tuning file, not here.
_CPU: Final = Machine(20e9, 200e9, 5e9, 3e-6, 30e-6)
# What their makers say: memory, dense bf16 products, a direction of the links. A launch within a recorded graph.
GPUS: Final = {
    "h100": Machine(3.35e12, 989e12, 450e9, 2e-6, 5e-6),
    "h200": Machine(4.8e12, 989e12, 450e9, 2e-6, 5e-6),
    "b200": Machine(8.0e12, 2250e12, 900e9, 2e-6, 5e-6),
    "b300": Machine(8.0e12, 2500e12, 900e9, 2e-6, 5e-6),
    "mi300x": Machine(5.3e12, 1307e12, 448e9, 2e-6, 5e-6),
    "mi355x": Machine(8.0e12, 2500e12, 537e9, 2e-6, 5e-6),
}

BYTES: Final = Target("unit", frozenset({"bytes"}))
FLOPS: Final = Target("unit", frozenset({"flops"}))
"""Made-up machines, which tell what a cost is made of: they take a second for each byte, or for each operation."""
_UNITS: Final = {BYTES: Machine(1.0, inf, 1.0, 0.0, 0.0), FLOPS: Machine(inf, 1.0, inf, 0.0, 0.0)}

Cost = Callable[["Call", "Target"], float]
"""Seconds that a call is predicted to take on a target."""


def machine(target: Target) -> Machine:
    """The description of a target's machine."""
    if target.architecture is not None:
        return GPUS[DEVICES[target.architecture]]
    return _UNITS.get(target, _CPU)


def seconds(target: Target, *, moved_bytes: float, flops: float = 0.0) -> float:
    """The roofline: whichever of memory and arithmetic takes longer, and the start."""
    m = machine(target)
    return m.launch_seconds + max(moved_bytes / m.bytes_per_second, flops / m.flops_per_second)


def elements(operand: Operand) -> int:
    """Elements, unknown dimensions counted as nominal."""
    return prod(NOMINAL_SIZE if size is None else size for size in operand.shape)


def operand_bytes(operand: Operand) -> int:
    """Bytes, unknown dimensions counted as nominal."""
    return elements(operand) * size_bytes(operand.dtype)


def free(call: Call, target: Target) -> float:
    """Nothing is moved: a view."""
    return 0.0


def bandwidth_bound(call: Call, target: Target) -> float:
    """Every operand read once, a result of the first operand's size written once."""
    return seconds(target, moved_bytes=sum(map(operand_bytes, call.operands)) + operand_bytes(call.operands[0]))


def add_norm_bound(call: Call, target: Target) -> float:
    """Both summands read, and two results written."""
    return seconds(target, moved_bytes=4 * operand_bytes(call.operands[0]))


def qk_rope_bound(call: Call, target: Target) -> float:
    """Queries and keys read and written; the values beside them stay untouched."""
    queries, keys, width = (cast(int, call.attributes[name]) for name in ("q_heads", "k_heads", "width"))
    turned = replace(call.operands[0], shape=(call.operands[0].shape[0], (queries + keys) * width))
    return seconds(target, moved_bytes=2 * operand_bytes(turned))


def composed(launches: int, cost: Cost = bandwidth_bound) -> Cost:
    """Of so many kernels of a library, one after the other."""
    return lambda call, target: cost(call, target) + (launches - 1) * machine(target).launch_seconds


def overlapped(cost: Cost = bandwidth_bound) -> Cost:
    """Of a kernel that NVIDIA's GPUs launch while the one before ends (`gpu/launch.py`), which hides half of what it takes to launch."""

    def of_call(call: Call, target: Target) -> float:
        hidden = machine(target).launch_seconds / 2 if target.family == "cuda" else 0.0
        return cost(call, target) - hidden

    return of_call


def gather_bound(source: int, indices: int) -> Cost:
    """Rows of operand `source`, as many as `indices` holds, read and written: the rest of the source stays untouched."""

    def cost(call: Call, target: Target) -> float:
        rows, row_source = elements(call.operands[indices]), call.operands[source]
        leading = row_source.shape[0] or NOMINAL_SIZE
        return seconds(target, moved_bytes=2 * rows * operand_bytes(row_source) / leading)

    return cost


def matmul_bound(call: Call, target: Target) -> float:
    """`x [..., I]` times `w [O, I]`."""
    x, w = call.operands[:2]
    outputs = w.shape[0] or NOMINAL_SIZE
    inner = w.shape[1] or NOMINAL_SIZE
    rows = elements(x) // inner if inner else 0
    moved = sum(map(operand_bytes, call.operands)) + rows * outputs * size_bytes(x.dtype)
    return seconds(target, moved_bytes=moved, flops=2.0 * rows * outputs * inner)


def gemm_bound(call: Call, target: Target) -> float:
    """`matmul_bound` of a library, which on a CPU copies `w` into an order of its own at each call."""
    copied = 2 * operand_bytes(call.operands[1]) if target.family == "cpu" else 0
    return matmul_bound(call, target) + copied / machine(target).bytes_per_second


def dot_bound(call: Call, target: Target) -> float:
    """`matmul_bound` where the lanes of a vector share out a row of `w`: they are added up for each result, which nothing hides."""
    x, w = call.operands[:2]
    rows = elements(x) // (w.shape[1] or NOMINAL_SIZE)
    return matmul_bound(call, target) + LANES * rows * (w.shape[0] or NOMINAL_SIZE) / machine(target).flops_per_second


def in_panels(w: Operand) -> Operand:
    """`w [..., O, I]` as it is stored in whole panels."""
    *leading, outputs, inner = w.shape
    return replace(w, shape=(*leading, -(-(outputs or NOMINAL_SIZE) // PANEL) * PANEL, inner))


def panels_bound(call: Call, target: Target) -> float:
    """`matmul_bound` of a `w` whose outputs are stored in whole panels."""
    x, w, *rest = call.operands
    return matmul_bound(replace(call, operands=(x, in_panels(w), *rest)), target)


def append_bound(call: Call, target: Target) -> float:
    """New keys and values read and written; the rest of the cache stays untouched."""
    return seconds(target, moved_bytes=2 * sum(map(operand_bytes, call.operands[1:3])))


def attention_bound(call: Call, target: Target) -> float:
    """Each sequence's pages read once; two products of every query head with every key."""
    q, cache, _, _, tables = call.operands
    page = operand_bytes(cache) / (cache.shape[0] or NOMINAL_SIZE)
    positions_per_sequence = (tables.shape[1] or NOMINAL_SIZE) * (cache.shape[1] or NOMINAL_SIZE)
    moved = elements(tables) * page + 2 * operand_bytes(q)
    return seconds(target, moved_bytes=moved, flops=4.0 * elements(q) * positions_per_sequence)


def sink_attention_bound(call: Call, target: Target) -> float:
    """`attention_bound`, and sinks, which are next to nothing."""
    q, cache, _, *step = call.operands
    return attention_bound(replace(call, operands=(q, cache, *step)), target)


def latent_attention_bound(call: Call, target: Target) -> float:
    """Each sequence's pages read once for all heads; two products of every head with every row."""
    q, rotated, cache, _, _, tables = call.operands
    page = operand_bytes(cache) / (cache.shape[0] or NOMINAL_SIZE)
    positions_per_sequence = (tables.shape[1] or NOMINAL_SIZE) * (cache.shape[1] or NOMINAL_SIZE)
    moved = elements(tables) * page + 2 * operand_bytes(q) + operand_bytes(rotated)
    return seconds(target, moved_bytes=moved, flops=(4.0 * elements(q) + 2.0 * elements(rotated)) * positions_per_sequence)


def expanded_attention_bound(call: Call, target: Target) -> float:
    """Each sequence's pages read once, and a key and a value for each head made of a row, written and read; two products of every head
    with those."""
    few, content, rotated, cache, k_up, v_up, _, _, tables = call.operands
    page = operand_bytes(cache) / (cache.shape[0] or NOMINAL_SIZE)
    positions_per_sequence = (tables.shape[1] or NOMINAL_SIZE) * (cache.shape[1] or NOMINAL_SIZE)
    positions = (tables.shape[0] or NOMINAL_SIZE) * positions_per_sequence
    of_weights = elements(k_up) + elements(v_up)
    made = positions * of_weights / (k_up.shape[2] or NOMINAL_SIZE) * size_bytes(few.dtype)
    moved = elements(tables) * page + 2 * made + sum(map(operand_bytes, (few, content, rotated, k_up, v_up)))
    pairs = 2.0 * (elements(content) + elements(rotated) + elements(few)) * positions_per_sequence
    return seconds(target, moved_bytes=moved, flops=2.0 * of_weights * positions + pairs)


def recurrence_bound(state: int) -> Cost:
    """Of an op whose operand `state` has a page a sequence: rows read and written once, each sequence's page read and written; and six
    operations for each number of a page and each token."""

    def cost(call: Call, target: Target) -> float:
        pages = call.operands[state]
        each = elements(pages) / (pages.shape[0] or NOMINAL_SIZE)
        moved = sum(operand_bytes(o) for i, o in enumerate(call.operands) if i != state) + operand_bytes(call.operands[0])
        moved_states = 2 * NOMINAL_SIZE * each * size_bytes(pages.dtype)
        flops = 6.0 * (call.operands[0].shape[0] or NOMINAL_SIZE) * each
        return seconds(target, moved_bytes=moved + moved_states, flops=flops)

    return cost


def einsum_bound(call: Call, target: Target) -> float:
    """Both operands read and the result written once; two operations for each combination of the letters."""
    equation = str(call.attributes["equation"])
    letters, result = equation.split("->")
    sizes = dict(zip(letters.replace(",", ""), (n for o in call.operands for n in o.shape), strict=True))
    written = prod(sizes[c] or NOMINAL_SIZE for c in result) * size_bytes(call.operands[0].dtype)
    flops = 2.0 * prod(n or NOMINAL_SIZE for n in sizes.values())
    return seconds(target, moved_bytes=sum(map(operand_bytes, call.operands)) + written, flops=flops)


def experts_bound(call: Call, target: Target) -> float:
    """As if every expert had a token: all weights read; how many a token has is not known here, and the same for every candidate."""
    x, gate = call.operands[0], call.operands[2]
    flops = 6.0 * (x.shape[0] or NOMINAL_SIZE) * prod(n or NOMINAL_SIZE for n in gate.shape[1:])
    return seconds(target, moved_bytes=sum(map(operand_bytes, call.operands)), flops=flops)


def experts_panels_bound(call: Call, target: Target) -> float:
    """`experts_bound` of weights that are stored in whole panels."""
    x, weights, gate, up, down, *biases = call.operands
    return experts_bound(replace(call, operands=(x, weights, *map(in_panels, (gate, up, down)), *biases)), target)


def experts_gemm_bound(call: Call, target: Target) -> float:
    """`experts_bound` of a library that is called for three products an expert, and copies each weight as `gemm_bound` says."""
    weights = call.operands[2:5]
    launched = 3 * (weights[0].shape[0] or NOMINAL_SIZE) * machine(target).launch_seconds
    return experts_bound(call, target) + launched + 2 * sum(map(operand_bytes, weights)) / machine(target).bytes_per_second


def message_bound(call: Call, target: Target) -> float:
    """The operand over the link once; the number of ranks is the plan's business, and the same for every candidate."""
    m = machine(target)
    return m.message_seconds + operand_bytes(call.operands[0]) / m.link_bytes_per_second


def all_reduce_add_bound(call: Call, target: Target) -> float:
    """`message_bound`, and an addition after it."""
    return message_bound(call, target) + _added(call, target)


def all_reduce_add_norm_bound(call: Call, target: Target) -> float:
    """`message_bound`, an addition after it, and a normalization after that."""
    return all_reduce_add_bound(call, target) + seconds(target, moved_bytes=2 * operand_bytes(call.operands[0]))


def one_shot_bound(call: Call, target: Target) -> float:
    """A message that a kernel sends itself: the operand over the link once, and what else it reads and writes meanwhile."""
    m = machine(target)
    return m.message_seconds + max(operand_bytes(call.operands[0]) / m.link_bytes_per_second, _added(call, target) - m.launch_seconds)


def _added(call: Call, target: Target) -> float:
    return seconds(target, moved_bytes=3 * operand_bytes(call.operands[0]))
