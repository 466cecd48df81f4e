"""Which tensors of a Hugging Face directory are weights that several of them make: by config.json's `quantization_config`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tsc.checkpoint.awq import AwqMethod
from tsc.checkpoint.compressed_tensors import CompressedTensorsMethod
from tsc.checkpoint.encoded import Encoded, StoredModule
from tsc.checkpoint.errors import UNKNOWN_QUANTIZATION, failure
from tsc.checkpoint.fp8 import Fp8Method
from tsc.checkpoint.gptq import GptqMethod
from tsc.checkpoint.mxfp4 import Mxfp4Method
from tsc.checkpoint.safetensors_file import StoredTensor
from tsc.diagnostics import near


class Method(Protocol):
    """Made of the directory and its `quantization_config`; raises CompileError where that asks for what is not read. parts: the tensors of
    a module that `weight` is made of."""

    @property
    def parts(self) -> tuple[str, ...]: ...

    def weight(self, module: StoredModule) -> Encoded | None:
        """None where the module is not quantized."""


METHODS: Mapping[str, Callable[[Path, Mapping[str, Any]], Method]] = {
    "awq": AwqMethod,
    "compressed-tensors": CompressedTensorsMethod,
    "fp8": Fp8Method,
    "gptq": GptqMethod,
    "mxfp4": Mxfp4Method,
}
"""By `quant_method`."""
_MARKS = {"mxfp4": "_"}
"""What stands between the name of a weight and those of its tensors, `down_proj_blocks`, where it is no module with a `.weight`."""
_OF_ACTIVATIONS = ("input", "output", "activation", "q", "k", "v", "prob")
_SCALES_OF_ACTIVATIONS = frozenset(f"{of}_{what}" for of in _OF_ACTIVATIONS for what in ("scale", "zero_point"))
"""Of inputs and caches, which stay in the model's type, or are rounded by what they turn out to be."""

Rows = Mapping[str, StoredTensor | Encoded]


def decoded(source: Path, config: Mapping[str, Any], rows: Mapping[str, StoredTensor]) -> Rows:
    """The tensors of a directory with one `weight` of a quantized module in place of what it is stored as. config: the model's. Reads
    headers, and little else. Raises CompileError where the method is unknown, or what it stores is not all there."""
    stated = config.get("quantization_config") or config.get("compression_config")
    if not stated:
        return rows
    name = stated.get("quant_method")
    if name not in METHODS:
        what = "does not say by which method it is quantized" if name is None else f"is quantized by `{name}`, which is not read"
        fix = f"give it in bf16, or quantized by one of {', '.join(METHODS)}"
        raise failure(UNKNOWN_QUANTIZATION, source, what + near(str(name), METHODS), fix)
    method, mark = METHODS[name](source, stated), _MARKS.get(name, ".")
    modules: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for tensor, row in rows.items():
        module, _, last = tensor.rpartition(mark)
        if last not in _SCALES_OF_ACTIVATIONS:
            modules[module][last] = row
    found: dict[str, StoredTensor | Encoded] = {}
    for module, tensors in modules.items():
        weight = method.weight(StoredModule(source, module, tensors, mark))
        if weight is not None:
            found[module if name in _MARKS else f"{module}.weight"] = weight
        others = {last: row for last, row in tensors.items() if not (weight and last in method.parts)}
        found |= {(f"{module}{mark}{last}" if module else last): row for last, row in others.items()}
    return found
