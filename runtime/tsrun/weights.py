"""A rank's weights, memory mapped: a tensor is read from disk when a kernel first touches it, and shared between processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tsrun.errors import ArtifactError


class Weights:
    """Tensors by name. Each is opened once, so that a tied weight is one tensor."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._open = cast(Any, safe_open(str(file), framework="pt"))
        except (SafetensorError, OSError) as error:
            raise self._refuse(f"can not be read ({error})") from None
        self._names = frozenset(self._open.keys())
        self._tensors: dict[str, Tensor] = {}

    def tensor(self, name: str, dtype: torch.dtype | None, shape: tuple[int, ...] | None) -> Tensor:
        """The tensor, which must be of the type and shape that the program states, where it states them."""
        tensor = self._tensors.get(name)
        if tensor is None:
            if name not in self._names:
                raise self._refuse(f"holds no tensor {name!r}, which the program names")
            tensor = self._tensors.setdefault(name, self._open.get_tensor(name))
        if (dtype is not None and tensor.dtype != dtype) or (shape is not None and tuple(tensor.shape) != shape):
            stored, wanted = f"{tensor.dtype} {list(tensor.shape)}", f"{dtype} {list(shape or ())}"
            raise self._refuse(f"tensor {name!r} is {stored}, the program wants {wanted}")
        return tensor

    def _refuse(self, what: str) -> ArtifactError:
        return ArtifactError(str(self._file), what, "compile the artifact again")
