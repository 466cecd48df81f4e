"""Plans of products with weights: those of few tokens, gated ones, and those of quantized weights. Others are torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tskernels.cost import matmul_bound, overlapped
from tskernels.gpu.launch import Argument, Launch, Number, Operand, Out, Plan, Scalar, Variant, Verification
from tskernels.gpu.sizes import cdiv
from tskernels.gpu.triton_entry import COMPILED, RUN, is_nvidia, padded, rows, size, source, stride, triton_kernel
from tskernels.quantized import FORMATS, PANEL
from tskernels.quantized_parts import GROUP
from tskernels.registry import Call, one_float_type
from tskernels.target import Target

FORMS: Final = ("int8", "int4", "q8_0", "q4_0", "q4_1", "affine4_32", "affine4_128", "affine8_32")
"""Layouts whose codes are whole bytes or halves of them, and whose groups have at most a scale and a minimum or a zero point."""

FEW: Final = 16
"""Tokens up to which a product is the reading of its weight, which cuBLAS does at a lower rate, often in two launches."""
_RUN: Final = ("int8", "int4", "q8_0")
"""Those that a device has run, ungated."""
_BESIDE_CUBLAS: Final = Verification("run", "NVIDIA H100", "2026-11-27")
"""By benchmarks/gpu_products.py."""


_DEPTH: Final = 2048
"""Inputs of a row that a block takes at a time."""
_NARROW: Final = 2048
"""Outputs of which a block takes half as many, so that most multiprocessors have one."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows, outputs and inputs that a block takes at a time, in steps of `tokens` tokens and more."""

    tokens: int
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def _variants(call: Call, function: str, arguments: dict[str, Argument], constants: dict[str, Number | str], tiles: list[Tile]) -> Plan:
    outputs = constants["OUTPUTS"]
    assert isinstance(outputs, int)
    types = _types(call, "u8" if function == "quantized_linear" else call.operands[0].dtype)
    launches = []
    for tile in tiles:
        grid = (cdiv(outputs, tile.columns), cdiv(rows(), tile.rows), 1)
        sizes = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth}
        given = {**arguments, "rows": Scalar(rows()), "x_token": stride(0, 0)}
        kinds = {name: types[name] for name in given if name in types}
        made = Launch(source("linear", function), grid, given, constants | sizes, kinds, tile.warps, tile.stages)
        launches.append(Variant((made,), tile.tokens))
    return Plan(tuple(launches))


def _types(call: Call, stored: str) -> dict[str, str]:
    dtype = call.operands[0].dtype
    return {"x": dtype, "w": stored, "bias": dtype, "out": dtype}


def _operands(call: Call) -> dict[str, Argument]:
    """With the weight for a bias that there is not."""
    return {"x": Operand(0), "w": Operand(1), "bias": Operand(len(call.operands) - 1), "out": Out()}


def _one_row(call: Call, activation: str) -> Variant:
    """Steps of one token. Its tiles were the quickest of some, at the widths of Qwen3 8B and DeepSeek-V2-Lite on an H100."""
    inner, outputs = size(call, 1, 1), size(call, 1, 0) // (2 if activation else 1)
    columns, warps = 2, 4 if activation else 2
    depth = min(_DEPTH, padded(inner, 256 * warps))
    constants: dict[str, Number | str] = {"ACTIVATION": activation, "HAS_BIAS": len(call.operands) > 2, "INNER": inner, "OUTPUTS": outputs}
    tile = {"COLUMNS": columns, "DEPTH": depth}
    arguments = {**_operands(call), "x_token": stride(0, 0)}
    grid, types = (cdiv(outputs, columns), rows(), 1), _types(call, call.operands[1].dtype)
    launch = Launch(source("linear", "one_row"), grid, arguments, constants | tile, types, warps, 1, dependent=True, early=(1,))
    return Variant((launch,))


def _is_matrix(call: Call) -> bool:
    """one float type, and `x` of two dimensions."""
    return one_float_type(call) and len(call.operands[0].shape) == 2


def _is_rows(call: Call) -> bool:
    """`x` of two dimensions."""
    return len(call.operands[0].shape) == 2


@triton_kernel("ts::linear", dtypes=("bf16", "f16"), when=_is_matrix, cost=overlapped(matmul_bound), verified=_BESIDE_CUBLAS)
def linear(call: Call, target: Target) -> Plan:
    constants: dict[str, Number | str] = {"HAS_BIAS": len(call.operands) > 2, "INNER": size(call, 1, 1), "OUTPUTS": size(call, 1, 0)}
    columns = 16 if size(call, 1, 0) <= _NARROW else 32
    few = _variants(call, "linear", _operands(call), constants, [Tile(2, 16, columns, 256, 4, 4 if is_nvidia(target) else 2)])
    return Plan((_one_row(call, ""), *few.variants, Variant((), FEW + 1, kernel="torch")))


@triton_kernel("ts::gated_linear", when=_is_matrix, cost=matmul_bound)
def gated_linear(call: Call, target: Target) -> Plan:
    stages, activation = 3 if is_nvidia(target) else 2, str(call.attributes["activation"])
    constants: dict[str, Number | str] = {"ACTIVATION": activation, "INNER": size(call, 1, 1), "OUTPUTS": size(call, 1, 0) // 2}
    arguments: dict[str, Argument] = {"x": Operand(0), "w": Operand(1), "out": Out()}
    if call.operands[0].dtype == "f32":
        return _variants(call, "gated_linear", arguments, constants, [Tile(1, 16, 32, 32, 4, 2), Tile(64, 64, 32, 32, 8, 2)])
    tiles = [Tile(2, 16, 32, 128, 4, stages), Tile(32, 64, 64, 64, 4, stages), Tile(128, 128, 64, 64, 8, stages)]
    return Plan((_one_row(call, activation), *_variants(call, "gated_linear", arguments, constants, tiles).variants))


def _quantized(name: str) -> None:
    form = FORMATS[name]
    block, group = (sum(t.itemsize for t in types) * PANEL for types in (form.block, form.group))
    codes = GROUP * PANEL * form.bits // 8
    block_bytes = block + form.groups * (group + codes)

    def made(call: Call, target: Target, activation: str) -> Plan:
        outputs, inner = size(call, 1, 0), size(call, 1, 1)
        panels = -(-outputs // PANEL) if not activation else -(-(outputs // 2) // (PANEL // 2))
        has_bias = len(call.operands) > 2
        constants: dict[str, Number | str] = {
            "ACTIVATION": activation,
            "HAS_BIAS": has_bias,
            "INNER": inner,
            "OUTPUTS": outputs // 2 if activation else outputs,
            "OFFSET": form.offset,
            "HAS_MINIMUM": len(form.group) == 2,
            "BITS": form.bits,
            "GROUPS": form.groups,
            "PANEL_BYTES": form.num_bytes(outputs, inner, bool(activation)) // panels,
            "BLOCK_BYTES": block_bytes,
            "BLOCK_HEAD": block,
            "GROUP_HEAD": group,
        }
        depth, stages = (GROUP, 4) if form.groups else (64, 3)
        is_wide = call.operands[0].dtype == "f32"
        warps = 8 if is_wide or activation else 4
        tiles = [Tile(1, 16, 16 if activation else 32, depth, 4, stages), Tile(32, 64, 32 if is_wide else 64, depth, warps, stages)]
        return _variants(call, "quantized_linear", _operands(call), constants, tiles)

    @triton_kernel(
        "ts::linear", when=_is_rows, cost=matmul_bound, layouts={1: name}, suffix=f"_{name}", verified=RUN if name in _RUN else COMPILED
    )
    def quantized(call: Call, target: Target) -> Plan:
        return made(call, target, "")

    @triton_kernel("ts::gated_linear", when=_is_rows, cost=matmul_bound, layouts={1: f"gated_{name}"}, suffix=f"_{name}", verified=COMPILED)
    def gated(call: Call, target: Target) -> Plan:
        return made(call, target, str(call.attributes["activation"]))


for _name in FORMS:
    _quantized(_name)
