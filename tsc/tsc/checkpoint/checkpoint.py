"""What every checkpoint offers, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.errors import UNKNOWN_TENSOR, failure

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What `read` returns: an element type (`f32`, `bf16`, ...) and a shape in torch's order (outermost first)."""

    dtype: str
    shape: tuple[int, ...]


class Checkpoint(ABC):
    """Weights, configuration and tokenizer of one model. Reads lazily; a file that changes under it is not noticed."""

    def __init__(self, source: Path, config: dict[str, Any], digest: str) -> None:
        self.source = source
        self.config = config
        self.digest = digest

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its Hugging Face name, in the checkpoint's order."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """The tensor as Hugging Face would store it. The caller owns it; the checkpoint keeps nothing of it.

        Raises CompileError when there is no such tensor or its type cannot be read.
        """

    @property
    def formats(self) -> Mapping[str, str]:
        """The tensors that the checkpoint stores quantized, and their format (`q4_k`, ...), for those that kernels can take as they are."""
        return {}

    def block_dimension(self, name: str) -> int:
        """That of one of `formats`, as `read` gives it, along which its blocks run."""
        return -1

    def blocks(self, name: str) -> torch.Tensor:
        """The bytes of one of `formats`, u8 [O, bytes of a row], its rows in the order in which `read` gives them: its other dimensions,
        then what stands for that along which blocks run. The caller owns it."""
        raise failure(UNKNOWN_TENSOR, self.source, f"stores no blocks of `{name}`")

    def is_needless(self, name: str) -> bool:
        """Whether a model that does not name the tensor is the same without it."""
        return False

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many tensors there are of each model beside the text decoder, which are none of `tensors`."""
        return {}

    @abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """`tokenizer.json` and `tokenizer_config.json`, or nothing when the checkpoint has no tokenizer.

        The configuration states at least `bos_token`, `eos_token`, `add_bos_token` and `chat_template`, null when there is none.
        """

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a generation; generation_config.json wins over config.json."""
        value = self._generation_value("eos_token_id")
        if value is None:
            return ()
        return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)

    @property
    def bos_token_id(self) -> int | None:
        value = self._generation_value("bos_token_id")
        return None if value is None else int(value)

    def _generation_config(self) -> Mapping[str, Any]:
        return {}

    def _generation_value(self, key: str) -> Any:
        value = self._generation_config().get(key)
        return self.config.get(key) if value is None else value
