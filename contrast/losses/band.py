"""Pairs of queries and targets that are near each other in a sequence, and the rows of an output layer they meet.

S queries, D dimensions. The targets are in n groups of G; a group meets R = G + `lead` consecutive queries, so that its
scores are one small product. N blocks of L = S / N queries share M further rows, such as draws of noise.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Band(NamedTuple):
    """Which of a group's targets are paired with which of its queries.

    pairs    [n, G, R] float, 1 for a pair, 0 for none. Group g meets the queries g G - lead .. g G + G - 1
    number   [S, 1] float, how many targets each query has
    lead     queries before the first target of a group that it may be paired with
    """

    pairs: Tensor
    number: Tensor
    lead: int

    def windows(self, values: Tensor) -> Tensor:
        """Values of the queries as the groups meet them, [S, D] -> [n, R, D], 0 beyond the ends. The groups overlap."""
        groups, size, width = self.pairs.shape
        padded = F.pad(values, (0, 0, self.lead, groups * size - len(self.number)))
        return padded.unfold(0, width, size).mT

    def collect(self, values: Tensor) -> Tensor:
        """Sums over groups for each query, [n, R, D] -> [S, D]: the transpose of `windows`."""
        groups, size, _ = self.pairs.shape
        total = values.new_zeros(groups + -(-self.lead // size), size, values.shape[2])
        for first, part in enumerate(values.split(size, dim=1)):
            total[first : first + groups, : part.shape[1]].add_(part)
        return total.view(-1, values.shape[2])[self.lead : self.lead + len(self.number)]


class Columns(NamedTuple):
    """Rows of an output layer, and how often each counts for a query: [n, K, R] near, [N, L, M] shared.

    ids       [n, K] or [N, M] int64
    total     how many pairs meet the row; may have size 1 where it is equal
    positive  the share of them that have it as a positive, a number or of a shape that broadcasts
    log_q     log expected count of the row among the draws, [n, K, 1] or [N, 1, M]; None: no correction
    """

    ids: Tensor
    total: Tensor
    positive: Tensor | float
    log_q: Tensor | None = None


class Output(NamedTuple):
    """What the pairs of a band are compared with.

    near    columns that belong to the targets, in the groups of the band: target-first, [n, K, R]
    shared  columns that all queries of a block share: query-first, [N, L, M]
    draws   how many of the shared columns are noise of a pair; 0: they are no noise
    holds_targets  a pair's own target is among the shared columns, and is no noise of the pair
    """

    band: Band
    near: Columns
    shared: Columns
    draws: int = 0
    holds_targets: bool = False
