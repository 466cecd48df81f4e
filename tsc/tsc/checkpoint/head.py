"""A checkpoint together with that of an EAGLE-3 head for it: the head's tensors and configuration are there under `eagle3`.

A head is stored as its authors do: `fc.weight`, `midlayer.*`, `norm.weight`, `lm_head.weight` over a vocabulary of its own, and `d2t`, by
how much the model's id of each of these tokens is larger; `t2d` says the same the other way round. It has no embeddings, or the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.checkpoint import Checkpoint, TensorInfo
from tsc.checkpoint.errors import UNKNOWN_TENSOR, UNSUPPORTED_LAYOUT, failure
from tsc.checkpoint.opening import open_checkpoint

if TYPE_CHECKING:
    import torch

HEAD = "eagle3"
_TO_MODEL = "d2t"
_MAPS = (_TO_MODEL, "t2d")
_EMBEDDINGS = "embed_tokens.weight"


def with_head(model: Checkpoint, path: Path) -> Checkpoint:
    """Raises CompileError where it is no head of the model."""
    head = open_checkpoint(path)
    wanted = {"hidden_size": model.config.get("hidden_size"), "vocab_size": model.config.get("vocab_size"), "num_hidden_layers": 1}
    for key, value in wanted.items():
        if head.config.get(key) != value:
            what = f"its {key} is {head.config.get(key)}, and a head for {model.source} has {value}"
            raise failure(UNSUPPORTED_LAYOUT, path, what, "give the EAGLE-3 head that was trained for this model")
    taps = (head.config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    layers = int(model.config["num_hidden_layers"])
    usual = [min(2, layers) - 1, max(min(2, layers), layers // 2) - 1, max(min(2, layers), layers // 2, layers - 3) - 1]
    if taps is not None and list(taps) != usual:
        what = f"it takes what layers {taps} make, and heads are given that of {usual}"
        raise failure(UNSUPPORTED_LAYOUT, path, what, "give a head of the usual layers")
    return _WithHead(model, head)


class _WithHead(Checkpoint):
    def __init__(self, model: Checkpoint, head: Checkpoint) -> None:
        digest = sha256(f"{model.digest} {head.digest}".encode()).hexdigest()
        super().__init__(model.source, model.config | {HEAD: head.config}, digest)
        self._model, self._head = model, head

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        found = dict(self._model.tensors)
        return found | {f"{HEAD}.{n}": info for n, info in self._head.tensors.items() if n not in (*_MAPS, _EMBEDDINGS)}

    def read(self, name: str) -> torch.Tensor:
        owner, own = self._of(name)
        return owner.read(own)

    @cached_property
    def formats(self) -> Mapping[str, str]:
        return dict(self._model.formats) | {f"{HEAD}.{name}": kind for name, kind in self._head.formats.items()}

    def block_dimension(self, name: str) -> int:
        owner, own = self._of(name)
        return owner.block_dimension(own)

    def blocks(self, name: str) -> torch.Tensor:
        owner, own = self._of(name)
        return owner.blocks(own)

    def is_needless(self, name: str) -> bool:
        owner, own = self._of(name)
        return owner.is_needless(own)

    def tokenizer_files(self) -> dict[str, bytes]:
        return self._model.tokenizer_files()

    def _generation_config(self) -> Mapping[str, Any]:
        return self._model._generation_config()

    def _of(self, name: str) -> tuple[Checkpoint, str]:
        return (self._head, name.removeprefix(f"{HEAD}.")) if name.startswith(f"{HEAD}.") else (self._model, name)


def guessed_tokens(path: Path) -> torch.Tensor:
    """i32 [V]: the model's id of each token of a head's vocabulary."""
    import torch

    head = open_checkpoint(path)
    size = head.config.get("draft_vocab_size") or head.config["vocab_size"]
    own = torch.arange(size, dtype=torch.int64)
    if _TO_MODEL not in head.tensors and size == head.config["vocab_size"]:
        return own.int()
    if _TO_MODEL not in head.tensors or head.tensors[_TO_MODEL].shape != (size,):
        raise failure(UNKNOWN_TENSOR, path, f"`{_TO_MODEL}` does not name {size} tokens", "download it again")
    found = own + head.read(_TO_MODEL).to(torch.int64)
    if int(found.min()) < 0 or int(found.max()) >= head.config["vocab_size"]:
        raise failure(UNKNOWN_TENSOR, path, f"`{_TO_MODEL}` names tokens outside of the vocabulary", "download it again")
    return found.int()
