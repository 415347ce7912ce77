"""Pairs of queries and targets that are near each other in a sequence, and the rows of an output layer that score them.

S queries, D dimensions. The targets are in n groups of G. A group is paired with R = G + `lead` consecutive queries, so
that its scores are one small product. N blocks of L = S / N queries share M further rows, such as draws of noise.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Band(NamedTuple):
    """Which of a group's targets are paired with which of its queries.

    pairs    [n, G, R] float, 1 for a pair, else 0. The window of group g is the queries g G - lead .. g G + G - 1
    number   [S, 1] float, how many targets each query has
    lead     how many queries before its first target a group may be paired with
    """

    pairs: Tensor
    number: Tensor
    lead: int

    def windows(self, values: Tensor) -> Tensor:
        """Values of the queries in each group's window, [S, D] -> [n, R, D], 0 beyond the ends. Windows overlap."""
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
    total     how many of the query's pairs are scored against the row; size 1 in a dimension along which it is constant
    positive  the share of these pairs for which the row is positive, a number or of a shape that broadcasts
    log_q     log expected count of the row among the draws, [n, K, 1] or [N, 1, M]; None: no correction
    """

    ids: Tensor
    total: Tensor
    positive: Tensor | float
    log_q: Tensor | None = None


class Output(NamedTuple):
    """The columns that the pairs of a band are scored against.

    near    columns that belong to the targets, in the groups of the band: target-first, [n, K, R]
    shared  columns that all queries of a block share: query-first, [N, L, M]
    draws   how many of the shared columns are noise of a pair; 0: none is noise
    holds_targets  a pair's own target is among the shared columns, and is not noise of the pair
    """

    band: Band
    near: Columns
    shared: Columns
    draws: int = 0
    holds_targets: bool = False


class ClassRows(NamedTuple):
    """The rows of an output layer that a pair with target class c is scored against: row[start[c]:start[c + 1]].

    start     [V + 1] int64, for V classes
    row       [m] int32
    positive  [m] float32, 1 for a positive row, else 0
    log_q     [rows], log expected count of each row among the draws; None: there are none
    common    the rows that steps change most often
    """

    start: Tensor
    row: Tensor
    positive: Tensor
    log_q: Tensor | None = None
    common: range = range(0)


class PairLoss(NamedTuple):
    """The loss of a single pair, for training on one pair at a time. Its scores are scale * dot + shift - log_q.

    softmax       one log-sum-exp of the target and all draws; False: a logistic loss for each column
    corrected     whether log_q is subtracted
    noise_weight  how often a draw counts in a logistic loss
    """

    softmax: bool
    scale: float
    shift: float
    corrected: bool
    noise_weight: float
