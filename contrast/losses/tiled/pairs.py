"""Which pairs of a query and a candidate are not plain negatives, as lists: the few exceptions to a product of tiles.

B queries, C candidates, D dimensions, M pairs.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrast.candidates import ABSENT, Candidates
from contrast.losses.tiled.once import once_differentiable

AT_ONCE = 8192  # pairs whose vectors are looked up together: 4 MiB at 128 dimensions


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
    if candidates.self_index is not None:
        keep &= candidates.self_index[found.row] != found.column
    return Pairs(found.row[keep], found.column[keep])


def exceptions(candidates: Candidates, positive: Pairs, most: int) -> Pairs | None:
    """Pairs of present candidates that are no negatives: positives, queries themselves, equal groups; each once.

    None if there are more than `most`.
    """
    parts = [positive]
    if candidates.self_index is not None:
        there = candidates.self_index >= 0
        rows = torch.arange(len(candidates.self_index), device=candidates.self_index.device)
        parts.append(Pairs(rows[there], candidates.self_index[there]))
    if candidates.excluded_groups is not None:
        assert candidates.query_groups is not None
        same = _equal(candidates.query_groups, candidates.excluded_groups, most)
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
    for rule in (candidates.ids, candidates.excluded_groups):
        if rule is not None:
            there = there & (rule != ABSENT)
    return there


class Products(torch.autograd.Function):
    """q_row . c_column of every pair, [M], without [M, D]: query [B, D], vectors [C, D], row and column [M]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, vectors: Tensor, row: Tensor, column: Tensor) -> Tensor:
        ctx.save_for_backward(query, vectors, row, column)
        products = query.new_empty(len(row))
        for part in _parts(len(row)):
            asking, answer = query.index_select(0, row[part]), vectors.index_select(0, column[part])  # [m, D]
            products[part] = torch.linalg.vecdot(asking, answer)
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, vectors, row, column = ctx.saved_tensors
        of_query, of_vectors = (
            torch.zeros_like(x) if wanted else None
            for x, wanted in zip((query, vectors), ctx.needs_input_grad[:2], strict=True)
        )
        for part in _parts(len(row)):
            factor = grad[part, None]  # [m, 1]
            if of_query is not None:
                of_query.index_add_(0, row[part], vectors.index_select(0, column[part]).mul_(factor))
            if of_vectors is not None:
                of_vectors.index_add_(0, column[part], query.index_select(0, row[part]).mul_(factor))
        return of_query, of_vectors, None, None


def _parts(pairs: int) -> Iterator[slice]:
    return (slice(start, start + AT_ONCE) for start in range(0, pairs, AT_ONCE))


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
