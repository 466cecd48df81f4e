"""Which inputs of a model's weights matter, as `tsrun importance` measured it: read, and held to the model that is compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tsc.diagnostics import CompileError, Diagnostic, near

if TYPE_CHECKING:
    import torch

MEASURE = "measure it with `tsrun importance` on this model, compiled with --quantize none"
FORMAT = 1
LEAST = 0.01
"""Of the mean."""


class _Record(msgspec.Struct, frozen=True):
    """What the file says of itself. config_sha256: of the model that was measured; tokens: of the text that it was measured on."""

    format: int
    config_sha256: str
    text_sha256: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Importance:
    """The mean square of each input of each weight. digest: of the file."""

    path: Path
    digest: str
    record: _Record
    file: Any

    def require(self, config_sha256: str, weights: Iterable[tuple[str, int]]) -> None:
        """Raise CompileError unless it is of the model with this config and has so many inputs of each of these tensors."""
        if self.record.config_sha256 != config_sha256:
            was, wanted = self.record.config_sha256[:12], config_sha256[:12]
            raise refusal(self.path, f"was measured on another model: its config is {was}..., and this one's {wanted}...")
        names = self.file.keys()
        for name, inputs in weights:
            if name not in names:
                raise refusal(self.path, f"has nothing of weight `{name}`{near(name, names)}")
            shape = self.file.get_slice(name).get_shape()
            if shape != [inputs]:
                raise refusal(self.path, f"has {shape} of weight `{name}`, which has {inputs} inputs")
            values = self._read(name)
            if not bool(values.isfinite().all()) or float(values.min()) < 0 or not float(values.sum()) > 0:
                raise refusal(self.path, f"has no mean squares of the inputs of weight `{name}`: they are not finite and positive")

    def of(self, tensor: str) -> torch.Tensor:
        """f32 [K], of a tensor of the checkpoint; [1] where nothing is known of it, as of an entry for drafts, which is not measured: all
        inputs count alike. No input counts for nothing: what one text did not need, another may."""
        if tensor not in self.file.keys():  # noqa: SIM118  (it is no mapping)
            import torch

            return torch.ones(1)
        found = self._read(tensor)
        return found + LEAST * found.mean()

    def _read(self, tensor: str) -> torch.Tensor:
        found: torch.Tensor = self.file.get_tensor(tensor)
        return found.float()

    def to_json(self) -> dict[str, Any]:
        return {"sha256": self.digest, "text_sha256": self.record.text_sha256, "tokens": self.record.tokens}


def importance_digest(path: Path) -> str:
    """SHA-256 of the file. Raises CompileError. Needs no torch."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise refusal(path, f"cannot be read: {(error.strerror or str(error)).lower()}") from None


def read_importance(path: Path) -> Importance:
    """Raises CompileError."""
    from safetensors import SafetensorError, safe_open

    digest = importance_digest(path)
    try:
        file: Any = safe_open(path, "pt")
        record = msgspec.json.decode((file.metadata() or {}).get("importance", ""), type=_Record)
    except (SafetensorError, msgspec.DecodeError) as error:
        raise refusal(path, f"is no importance file ({error})") from None
    if record.format != FORMAT:
        raise refusal(path, f"has format {record.format}, this tsc reads {FORMAT}")
    return Importance(path, digest, record, file)


def refusal(path: Path, what: str, fixes: Sequence[str] = (MEASURE,)) -> CompileError:
    return CompileError(Diagnostic("TS0512", f"--importance {path}: {what}", fixes=tuple(fixes)))
