"""Log-sum-exp over tiles with a running maximum (Milakov and Gimelshein 2018), where no common shift is possible.

B queries, C candidates. Scores are in units of log 2.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from contrast.losses.tiled.gradients import LOG2_E

Tile = tuple[slice, slice, Tensor]  # rows, columns, scores


def online_lse(tiles: Iterable[Tile], lse: Tensor, column_lse: Tensor | None = None) -> Tensor:
    """Log-sum-exp of every row, [B]; `lse` [B] and `column_lse` [C] are filled with those of the rows and columns."""
    lowest = torch.finfo(lse.dtype).min
    rows_and_columns = [x for x in (lse, column_lse) if x is not None]
    highest = [torch.full_like(x, lowest) for x in rows_and_columns]
    total = [torch.zeros_like(x) for x in rows_and_columns]
    for rows, columns, scores in tiles:
        if column_lse is not None:
            fold(scores.T.clone(), highest[1][columns], total[1][columns])
        fold(scores, highest[0][rows], total[0][rows])
    for x, high, sums in zip(rows_and_columns, highest, total, strict=True):
        x.copy_(natural(high, sums))
    return lse


def fold(scores: Tensor, highest: Tensor, total: Tensor) -> None:
    """Adds a tile's scores [b, c], which are overwritten, to a running maximum [b] and sum of exp2(s - maximum) [b]."""
    new = torch.maximum(highest, scores.amax(dim=1))
    part = scores.sub_(new[:, None]).exp2_().sum(dim=1)
    total.mul_((highest - new).exp2()).add_(part)
    highest.copy_(new)


def natural(highest: Tensor, total: Tensor) -> Tensor:
    """The log-sum-exp in natural units; the dtype's lowest number where nothing was added."""
    return ((highest + total.log2()) / LOG2_E).clamp(min=torch.finfo(total.dtype).min)
