"""How tensors of Hugging Face are made of those of a GGUF: the converter's changes, undone.

What is made is stated on dimensions alone where rows keep their columns: it is then done to the blocks of quantized rows as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.architectures import Made
from tsc.checkpoint.gguf_header import GgufTensor

if TYPE_CHECKING:
    import torch

Make = Callable[[Sequence["torch.Tensor"], Mapping[str, Any]], "torch.Tensor"]
"""Of the parts and the configuration. Where a recipe is by rows, the last dimension may be bytes."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A tensor: of which of the file's, and how. by_rows: whether each row of what is made is one of a part's, whole; is_turned: whether
    the tensor is a stack [N, I, O] of what is made [N, O, I]."""

    parts: tuple[GgufTensor, ...]
    make: Make
    by_rows: bool = True
    is_turned: bool = False

    def made_shape(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Of what is made; computes nothing."""
        import torch

        parts = [torch.empty(part.shape, device="meta") for part in self.parts]
        return tuple(self.make(parts, config).shape)

    def shape(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Of the tensor."""
        made = self.made_shape(config)
        return (made[0], made[2], made[1]) if self.is_turned else made


def same(part: GgufTensor) -> Recipe:
    """The tensor as it is."""
    return Recipe((part,), _same)


def in_pairs(part: GgufTensor, heads: int) -> Recipe:
    """A head's rows as halves, where neighbours are its pairs."""
    return Recipe((part,), partial(_halves, heads=heads))


def expert(part: GgufTensor, index: int) -> Recipe:
    """One of a stack."""
    return Recipe((part,), partial(_one_of, index=index))


def made(how: Made, parts: tuple[GgufTensor, ...]) -> Recipe:
    """One of the table's."""
    make, by_rows, is_turned = _MADE[how]
    return Recipe(parts, make, by_rows, is_turned)


def _same(parts: Sequence[torch.Tensor], _: Mapping[str, Any]) -> torch.Tensor:
    return parts[0]


def _halves(parts: Sequence[torch.Tensor], _: Mapping[str, Any], *, heads: int) -> torch.Tensor:
    [stored] = parts
    pairs = stored.reshape(heads, stored.shape[0] // heads // 2, 2, *stored.shape[1:])
    return pairs.transpose(1, 2).reshape(stored.shape)


def _one_of(parts: Sequence[torch.Tensor], _: Mapping[str, Any], *, index: int) -> torch.Tensor:
    return parts[0][index]


def _conv(parts: Sequence[torch.Tensor], _: Mapping[str, Any]) -> torch.Tensor:
    """Of each channel [C, W] a filter of one input [C, 1, W]."""
    return parts[0].reshape(parts[0].shape[0], 1, -1)


def _decay_rate(parts: Sequence[torch.Tensor], _: Mapping[str, Any]) -> torch.Tensor:
    """The logarithm of what is stored negated."""
    return (-parts[0]).log()


def _gate_up(parts: Sequence[torch.Tensor], _: Mapping[str, Any]) -> torch.Tensor:
    """[N, F, ...] twice as [N, 2 F, ...], a gate and what it gates side by side."""
    import torch

    return torch.stack(list(parts), 2).flatten(1, 2)


def _grouped(parts: Sequence[torch.Tensor], config: Mapping[str, Any]) -> torch.Tensor:
    """Rows of all queries, keys and values, and of all gates, as each key head's query, key, values and gates."""
    import torch

    (mixed, gates), heads = parts, config["linear_num_key_heads"]
    keys = heads * config["linear_key_head_dim"]
    each = [mixed[:keys], mixed[keys : 2 * keys], mixed[2 * keys :], gates]
    return torch.cat([rows.reshape(heads, -1, rows.shape[-1]) for rows in each], 1).flatten(0, 1)


def _latent_up(parts: Sequence[torch.Tensor], _: Mapping[str, Any]) -> torch.Tensor:
    """[H, C, A], which takes latent rows to queries' space, and [H, E, C] as each head's keys and values [H (A + E), C]."""
    import torch

    keys, values = parts
    return torch.cat([keys.transpose(1, 2), values], 1).flatten(0, 1)


def _row(parts: Sequence[torch.Tensor], _: Mapping[str, Any]) -> torch.Tensor:
    return parts[0].reshape(1, -1)


_MADE: Mapping[Made, tuple[Make, bool, bool]] = {
    "columns": (_same, True, True),
    "conv": (_conv, False, False),
    "decay_rate": (_decay_rate, False, False),
    "gate_up": (_gate_up, True, True),
    "gate_up_bias": (_gate_up, False, False),
    "grouped": (_grouped, True, False),
    "latent_up": (_latent_up, False, False),
    "row": (_row, False, False),
}
"""How; whether by rows; whether it is then turned."""
