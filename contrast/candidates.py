"""The one shared type: who may answer the queries of a batch.

B queries, C candidates, D dimensions. Masks are rules on ids, not matrices: a `[B, C]` boolean costs as much as
the scores it masks, so every path asks for the masks of the tile it is working on.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Candidates of B queries, and the rules that say which of them are positive and which count.

    vectors    [C, D], shared by the batch, or [B, C, D], one set per query
    ids        [C] or [B, C] int64; a candidate is positive where its id equals its query's
    query_ids  [B] int64
    own        [B] int64, the column that is the query itself and never counts (-1: not among them), or None
    log_q      [C] or [B, C], log expected count under the noise it was drawn from, or None: no correction
    """

    vectors: Tensor
    ids: Tensor
    query_ids: Tensor
    own: Tensor | None = None
    log_q: Tensor | None = None

    def __len__(self) -> int:
        return self.vectors.shape[-2]

    def tile(self, rows: slice, columns: slice) -> "Candidates":
        """The candidates `columns` as the queries `rows` see them; the masks of the tile follow from it."""
        own = None
        if self.own is not None:
            start, stop, _ = columns.indices(len(self))
            own = self.own[rows] - start
            own = torch.where((own >= 0) & (own < stop - start), own, -1)
        vectors = self.vectors[columns] if self.vectors.ndim == 2 else self.vectors[rows, columns]
        return replace(
            self,
            vectors=vectors,
            ids=_columns(self.ids, rows, columns),
            query_ids=self.query_ids[rows],
            own=own,
            log_q=None if self.log_q is None else _columns(self.log_q, rows, columns),
        )

    def masks(self) -> tuple[Tensor, Tensor]:
        """`(positive, valid)`, both [B, C] bool; every positive is valid."""
        valid = torch.ones(len(self.query_ids), len(self), dtype=torch.bool, device=self.ids.device)
        if self.own is not None:
            columns = torch.arange(len(self), device=self.ids.device)
            valid = self.own[:, None] != columns  # [B, 1] x [C] -> [B, C]
        positive = (self.query_ids[:, None] == self.ids) & valid  # [B, 1] x [C] or [B, C] -> [B, C]
        return positive, valid


def _columns(rule: Tensor, rows: slice, columns: slice) -> Tensor:
    return rule[columns] if rule.ndim == 1 else rule[rows, columns]
