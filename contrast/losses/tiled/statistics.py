"""What the losses need of every query's scores, without ever holding [B, C] of them.

B queries, C candidates, P answers, D dimensions, M positives.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.losses.tiled.cpu import Lse, SoftplusSum, SymmetricLse, common_shift
from contrast.losses.tiled.pairs import equal_pairs, exceptions, positive_pairs, present
from contrast.losses.tiled.plan import Plan
from contrast.losses.tiled.ranks import Blocks, RankedLse, RingSum

MOST = 32  # pairs for each query and candidate that are kept as a list, of about 100 bytes each
FEW = 4  # that many always are, and beyond them
SCORES = 64  # one pair for so many scores: a pair of a list takes as long as the masks of 64


class Layout(NamedTuple):
    """Where the positives are, and what else does not count, for shared candidates."""

    positive_row: Tensor  # [M] int64
    positive_column: Tensor  # [M]
    plan: Plan  # of the negatives
    absent: Tensor | None  # [C] bool; None: all candidates are there
    negatives: Tensor  # [B] int64, how many


def layout(candidates: Candidates) -> Layout | None:
    """Lists of the pairs that are no plain negatives.

    None where they are too many, or where every query has candidates or rules of its own, [B, C, D] or [B, C].
    """
    each = (candidates.ids, candidates.excluded_groups)
    if candidates.vectors.ndim != 2 or any(rule is not None and rule.ndim == 2 for rule in each):
        return None
    queries, count = len(candidates.query_ids), len(candidates)
    most = _most(queries, count)
    if candidates.symmetric:  # ranks wait for each other in backward: all have to decide alike, by the pairs of all
        if any(rule is not None and equal_pairs(rule) > _most(count, count) for rule in each):
            return None
        most = queries * count
    positive = positive_pairs(candidates, most)
    others = None if positive is None else exceptions(candidates, positive, most)
    if positive is None or others is None:
        return None
    there = present(candidates)
    absent = None if bool(there.all()) else ~there
    negatives = there.sum() - torch.bincount(others.row, minlength=queries)
    return Layout(positive.row, positive.column, Plan(queries, count, others), absent, negatives)


def _most(queries: int, candidates: int) -> int:
    """How many pairs a list may have."""
    return min(MOST * (queries + candidates), max(FEW * (queries + candidates), queries * candidates // SCORES))


def lse_of_negatives(
    query: Tensor,
    vectors: Tensor,
    offset: Tensor | None,
    plan: Plan,
    symmetric: bool = False,
    blocks: Blocks | None = None,
) -> Tensor:
    """Log-sum-exp of q . c + offset over the negatives of every query, [B].

    query [B, D], vectors [C, D], offset [C] or None (-inf: the candidate does not count), all float32 or float64
    symmetric  the vectors are the queries, the same tensor, or those of all ranks
    blocks     of a ring: the vectors are this rank's, there is no offset, and `plan` is not looked at
    """
    if blocks is not None:
        return RingSum.apply(query, vectors, None, blocks, symmetric, False)
    if symmetric and offset is None:
        shift = common_shift(vectors, vectors, None)  # the same on every rank
        if vectors is not query:
            return RankedLse.apply(query, vectors.detach(), shift, plan)
        if shift is not None:
            return SymmetricLse.apply(query, shift, plan)
    return Lse.apply(query, vectors, offset, plan)


def softplus_of_negatives(
    query: Tensor, vectors: Tensor, offset: Tensor | None, bias: Tensor, plan: Plan, blocks: Blocks | None = None
) -> Tensor:
    """Sum of softplus(q . c + offset + bias) over the negatives of every query, [B]; bias a scalar, others as above."""
    if blocks is not None:
        return RingSum.apply(query, vectors, bias, blocks, False, True)
    offset = bias.expand(len(vectors)) if offset is None else offset + bias
    return SoftplusSum.apply(query, vectors, offset, plan)


def of_positives(scores: Tensor, row: Tensor, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """(lse, mean, number) over the positives of every query, each [B], of scores [M] that belong to `row` [M].

    Without positives: the dtype's lowest number, 0 and 0.
    """
    count = torch.bincount(row, minlength=queries)
    mean = scores.new_zeros(queries).index_add(0, row, scores) / count.clamp(min=1)
    if len(row) <= queries and bool((count <= 1).all()):
        return torch.where(count > 0, mean, torch.finfo(scores.dtype).min), mean, count
    lowest = scores.new_full((queries,), torch.finfo(scores.dtype).min)
    highest = lowest.scatter_reduce(0, row, scores.detach(), "amax")
    total = scores.new_zeros(queries).index_add(0, row, (scores - highest[row]).exp())
    lse = torch.where(count > 0, highest + torch.where(count > 0, total, 1).log(), lowest)
    return lse, mean, count
