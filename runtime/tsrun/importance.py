"""What `tsrun importance` does: measures how much the inputs of each weight matter, for `tsc compile --importance` to round by.

The importance of an input is its mean square over the tokens of a text. What a product of joined weights reads is the input of each of
them, so it is written under the name of each. Does not: look at experts, which no format rounds.

Dimensions: N tokens, K inputs of a weight.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsrun.artifact import Artifact, open_artifact
from tsrun.binding import BoundCall
from tsrun.errors import RequestError
from tsrun.generate import loading_progress
from tsrun.places import Place
from tsrun.text_windows import Text, encoded, read_text, run_text
from tsrun.verification import files_read_before

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
PRODUCTS = ("ts::linear", "ts::gated_linear", "ts::screened_linear")
"""Whose second operand is a weight that their first is multiplied with."""


class MeanSquares:
    """Of the inputs of each weight, as an observer of calls."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}

    def __call__(self, call: BoundCall, arguments: Sequence[Any]) -> None:
        if call.op not in PRODUCTS or not isinstance(call.args[1], Place):
            return
        x_NK = arguments[0].flatten(0, -2).double()
        name = call.args[1].tensor
        self._sums[name] = self._sums.get(name, 0) + x_NK.square().sum(0)
        self._rows[name] = self._rows.get(name, 0) + len(x_NK)

    def by_tensor(self) -> Mapping[str, Tensor]:
        """f32 [K], by the checkpoint's names."""
        return {part: (total / self._rows[name]).float() for name, total in self._sums.items() for part in name.split("+")}


def importance(path: Path, file: Path, output: Path | None, most_tokens: int | None, threads: int | None) -> None:
    """Measure an artifact on a text file, and write what was found: whole or not at all."""
    target = output or Path(f"{path.stem}.importance.safetensors")
    text = read_text(file)
    artifact = open_artifact(path, progress=loading_progress(), memory=files_read_before())
    ids = encoded(artifact, text, most_tokens)
    found = measured(artifact, ids, threads)
    write(target, artifact, found, text_sha256=hashlib.sha256(text.encode()).hexdigest(), tokens=len(ids.ids))
    print(f"wrote {target}: the importance of the inputs of {len(found)} weights, on {len(ids.ids)} tokens")


def measured(artifact: Artifact, text: Text, threads: int | None = None) -> Mapping[str, Tensor]:
    """The importance of each weight's inputs, f32 [K], by the checkpoint's names. Raises RequestError."""
    if artifact.manifest.quantization is not None:
        what = "its weights are quantized, and importance is that of the weights as they were"
        raise RequestError(str(artifact.path), what, "compile it with --quantize none")
    if not text.ids:
        raise RequestError("text", "it has no tokens", "give a longer one")
    found = MeanSquares()
    for _ in run_text(artifact, text, threads, found):
        pass
    return found.by_tensor()


def write(path: Path, artifact: Artifact, tensors: Mapping[str, Tensor], *, text_sha256: str, tokens: int) -> None:
    """What was measured, with what it is of."""
    from safetensors.torch import save_file

    record = {"format": FORMAT, "config_sha256": artifact.manifest.model.config_sha256, "text_sha256": text_sha256, "tokens": tokens}
    temporary = path.with_name(f".{path.name}.partial")
    try:
        # One entry: safetensors keeps no order of several, and the same measurement is the same file.
        save_file(dict(tensors), temporary, {"importance": json.dumps(record)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
