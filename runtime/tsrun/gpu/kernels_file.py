"""kernels.json: the functions that an artifact has machine code of, and how each call is launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from tskernels.gpu.launch import Number, Resources
from tsrun.errors import ArtifactError

KERNELS = "kernels.json"
FORMAT = 1
Size = int | str | list[Any]
"""As `tskernels.gpu.sizes.from_json` reads it."""


class Operand(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="operand"):
    index: int


class Out(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="out"):
    pass


class Constants(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="constants"):
    pass


class ScratchSpace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="scratch"):
    name: str


class PreparedInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="prepared"):
    name: str


class Coordinate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="coordinate"):
    name: str


class Peers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="peers"):
    fact: Literal["memories", "rank", "ranks"]


class Scalar(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="scalar"):
    value: Any
    dtype: str


class TensorMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="map"):
    of: Operand | Out | ScratchSpace
    dtype: str
    sizes: list[Size]
    strides: list[Size]
    box: list[Size]
    swizzle: int


Argument = Operand | Out | Constants | ScratchSpace | PreparedInput | Coordinate | Peers | Scalar | TensorMap


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    function: int
    grid: tuple[Size, Size, Size]
    arguments: list[Argument]


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: int
    launches: list[Launch]
    newest: int = 1
    kernel: str = ""


class Scratch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    bytes: Size
    zeroed: bool


class Prepared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    function: str
    keywords: dict[str, Number | str]
    capacity: Size


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    op: str
    kernel: str
    call: str
    variants: list[Variant]
    scratch: list[Scratch] = []
    prepared: list[Prepared] = []
    exchanged: Size | None = None

    def variant(self, tokens: int, newest: int) -> Variant:
        """What runs in a step of so many tokens, and at most so many of one sequence."""
        return next((v for v in reversed(self.variants) if v.tokens <= tokens and v.newest <= newest), self.variants[0])


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Machine code, and what it was made of. trailing: addresses after its parameters, all 0."""

    file: str
    symbol: str
    threads: int
    trailing: int
    resources: Resources
    compiler: str
    source: str
    signature: list[tuple[str, str]]
    multiples: dict[str, int]
    constants: dict[str, Number | str | bool]
    warps: int
    stages: int
    shared: int
    cluster: int
    dependent: bool


class KernelsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    target: str
    functions: list[Function]
    plans: list[Plan]

    def beginnings(self) -> list[int]:
        """Numbers of newest tokens of a sequence that variants begin at, but for 1, rising."""
        return sorted({variant.newest for plan in self.plans for variant in plan.variants} - {1})


def read_kernels(file: Path) -> KernelsFile:
    """Raises ArtifactError with one line that names the file."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=KernelsFile)
    except (OSError, msgspec.DecodeError) as error:
        raise _refuse(file, f"is not what this tsrun knows ({error})") from None
    if found.format != FORMAT:
        raise _refuse(file, f"has format {found.format}, this tsrun reads {FORMAT}")
    launches = [launch for plan in found.plans for variant in plan.variants for launch in variant.launches]
    if any(not 0 <= launch.function < len(found.functions) for launch in launches):
        raise _refuse(file, "launches a function that it does not have")
    if any(len(launch.arguments) != len(found.functions[launch.function].signature) for launch in launches):
        raise _refuse(file, "gives a function another number of arguments than it takes")
    return found


def _refuse(file: Path, what: str) -> ArtifactError:
    return ArtifactError(str(file), what, "compile the artifact again with the `tsc` of this installation")
