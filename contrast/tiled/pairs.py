"""Which pairs of a query and a candidate are not plain negatives, as lists: the few exceptions to a product of tiles.

B queries, C candidates, M pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from contrast.candidates import ABSENT, Candidates


class Pairs(NamedTuple):
    """Pairs of a query and a candidate, int64 [M] each."""

    row: Tensor
    column: Tensor


def positive_pairs(candidates: Candidates, most: int) -> Pairs | None:
    """The positives among the shared candidates, in order of their rows; None if there are more than `most`."""
    if candidates.ids is None:
        return Pairs(*candidates.query_ids.new_empty(2, 0))
    found = _equal(candidates.query_ids, candidates.ids, most)
    if found is None:
        return None
    keep = present(candidates)[found.column]
    if candidates.own is not None:
        keep &= candidates.own[found.row] != found.column
    return Pairs(found.row[keep], found.column[keep])


def exceptions(candidates: Candidates, positive: Pairs, most: int) -> Pairs | None:
    """Pairs of present candidates that are no negatives: positives, queries themselves, equal groups; each once.

    None if there are more than `most`.
    """
    parts = [positive]
    if candidates.own is not None:
        there = candidates.own >= 0
        rows = torch.arange(len(candidates.own), device=candidates.own.device)
        parts.append(Pairs(rows[there], candidates.own[there]))
    if candidates.groups is not None:
        assert candidates.query_groups is not None
        same = _equal(candidates.query_groups, candidates.groups, most)
        if same is None:
            return None
        parts.append(same)
    row, column = (torch.cat(each) for each in zip(*parts, strict=True))
    keep = present(candidates)[column]
    number = torch.unique(row[keep] * len(candidates) + column[keep])
    return Pairs(number // len(candidates), number % len(candidates))


def present(candidates: Candidates) -> Tensor:
    """Candidates that may count at all, [C] bool."""
    there = torch.ones(len(candidates), dtype=torch.bool, device=candidates.query_ids.device)
    for rule in (candidates.ids, candidates.groups):
        if rule is not None:
            there = there & (rule != ABSENT)
    return there


def equal_pairs(ids: Tensor) -> int:
    """How many pairs of equal ids there are among `ids`, each with itself too."""
    _, count = ids.unique(return_counts=True)
    return int(count.square().sum())


def _equal(query_ids: Tensor, ids: Tensor, most: int) -> Pairs | None:
    """All pairs of equal ids, [B] and [C], by sorting; None if there are more than `most`."""
    order = ids.argsort(stable=True)
    ordered = ids[order]
    first = torch.searchsorted(ordered, query_ids)  # [B]
    count = torch.searchsorted(ordered, query_ids, right=True) - first
    total = int(count.sum())
    if total > most:
        return None
    row = torch.repeat_interleave(count, output_size=total)
    within = torch.arange(total, device=ids.device) - (count.cumsum(0) - count)[row]
    return Pairs(row, order[first[row] + within])
