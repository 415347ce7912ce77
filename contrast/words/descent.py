"""Gradient descent on the rows of a table that a step touches: how both ways of computing gradients apply them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Rows = tuple[Tensor, Tensor]  # ids of rows, of any shape, and what belongs to each


class Descent(NamedTuple):
    """One step of gradient descent.

    lr                 learning rate of the sum over pairs
    max_pairs_per_row  if more pairs than this update one row in a step, the row's summed gradient is scaled by
                       max_pairs_per_row / pairs; None: never. One step cannot follow hundreds of pairs of a frequent
                       word at once: it would overshoot
    pair_counts        [V] zeros, one tensor for each worker, in which the pairs of each row are counted; `update`
                       leaves zeros behind
    """

    lr: float
    max_pairs_per_row: float | None
    pair_counts: Tensor

    def update(self, table: Tensor, steps: Sequence[Rows], pairs: Sequence[Rows]) -> None:
        """Adds lr * step to rows of `table` [V, D], scaled as above. A row that occurs twice gets both steps.

        steps  ids of rows and minus their gradients [..., D], which are overwritten
        pairs  ids of rows and how many pairs update them
        """
        most, counts = self.max_pairs_per_row, self.pair_counts
        if most is not None:
            updated = torch.cat([ids.reshape(-1) for ids, _ in pairs])
            counts.index_add_(0, updated, torch.cat([number.reshape(-1) for _, number in pairs]).to(counts.dtype))
        for ids, step in steps:
            ids, step = ids.reshape(-1), step.reshape(-1, table.shape[1])
            if most is not None:
                step.mul_((most / counts.index_select(0, ids).clamp_(min=most))[:, None])
            table.index_add_(0, ids, step, alpha=self.lr)
        if most is not None:
            counts.index_fill_(0, updated, 0)
