"""An 8-bit copy of a head's weight with bounds of its error, which says which rows can have the largest products (kernels/csrc/screen.hpp).

Legend: V rows and K columns of the weight; P panels of 32 rows; Q quads of columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

PANEL: Final = 32
FACTS: Final = 3


def stored_bytes(rows: int, columns: int) -> int:
    """Bytes of the copy of a `[V, K]` weight."""
    return -(-rows // PANEL) * (-(-columns // 4) * 4 * PANEL + FACTS * PANEL * 4)


def pack_screen(w_VK: Tensor) -> Tensor:
    """u8[bytes]: panels of bytes `[Q][32][4]`, each followed by `[3][32]` f32: the step s of a row's bytes q, the norm of what is left of
    the row with what arithmetic in f32 may round off, and s|q|. Rows past the last have no bounds: their products are below all."""
    import torch

    V, K = w_VK.shape
    P, Q = -(-V // PANEL), -(-K // 4)
    stored = torch.zeros(P, Q * 4 * PANEL + FACTS * PANEL * 4, dtype=torch.uint8)
    some = max(1, (1 << 24) // max(1, K * PANEL))
    for first in range(0, P, some):  # a few megabytes at a time
        last = min(P, first + some)
        rows = torch.zeros((last - first) * PANEL, Q * 4, dtype=torch.float32)
        given = w_VK[first * PANEL : last * PANEL].float()
        rows[: len(given), :K] = given
        broken = ~rows.isfinite().all(1)  # read in any case, so that whoever looks at the logits finds out
        rows[broken] = 0
        step = rows.abs().amax(1) / 127
        q = torch.where(step[:, None] > 0, rows / step[:, None], 0).round()
        wide, kept = rows.double(), step.double()[:, None] * q.double()
        norm = kept.norm(dim=1)
        # A sum of K products in f32 is off by at most K units of its last place of the sum of their sizes, a few more for the rest.
        error = (wide - kept).norm(dim=1) + (K + 16) * 2.0**-24 * wide.norm(dim=1)
        above = torch.finfo(torch.float32).eps  # never rounded down
        facts = torch.stack((step, (error * (1 + above)).float(), (norm * (1 + above)).float()))
        facts[1, broken] = torch.finfo(torch.float32).max
        if len(given) < len(rows):
            facts[1, len(given) :] = -torch.inf  # upper bounds of -inf; lower ones are not looked at
        bytes_PQR4 = (q + 128).to(torch.uint8).view(-1, PANEL, Q, 4).transpose(1, 2)
        stored[first:last, : Q * 4 * PANEL] = bytes_PQR4.reshape(last - first, -1)
        facts_PF = facts.view(FACTS, -1, PANEL).transpose(0, 1).contiguous()
        stored[first:last, Q * 4 * PANEL :] = facts_PF.view(torch.uint8).view(last - first, -1)
    return stored.view(-1)
