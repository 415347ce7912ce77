"""The statistics where positives are many (SupCon with few classes): masks made for each tile from the rules on ids.

B queries, C candidates, D dimensions. Scores are s = q . c + offset.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.losses.tiled.cpu import fold, shifted_exp, softplus, tiles
from contrast.losses.tiled.once import once_differentiable
from contrast.losses.tiled.plan import Plan

Masked = tuple[slice, slice, Tensor, Tensor, Tensor]


def masked_tiles(
    query: Tensor, vectors: Tensor, offset: Tensor | None, plan: Plan, rules: Candidates
) -> Iterator[Masked]:
    """(rows, columns, scores, positive, negative) of tile after tile."""
    for rows, columns, scores in tiles(query, vectors, offset, plan):
        positive, valid = rules.tile(rows, columns).masks()
        yield rows, columns, scores, positive, valid & ~positive


class MaskedStatistics(torch.autograd.Function):
    """(lse_neg, lse_pos, mean_pos, positives, negatives), each [B], with running maxima."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, vectors: Tensor, offset: Tensor | None, plan: Plan, rules: Candidates
    ) -> tuple[Tensor, ...]:
        lowest = torch.finfo(query.dtype).min
        highest = [query.new_full((plan.queries,), lowest) for _ in range(2)]  # of negatives, of positives
        total = [query.new_zeros(plan.queries) for _ in range(2)]
        count = [torch.zeros(plan.queries, dtype=torch.long, device=query.device) for _ in range(2)]
        sum_pos = query.new_zeros(plan.queries)
        for rows, _, scores, positive, negative in masked_tiles(query, vectors, offset, plan, rules):
            for which, mask in enumerate((negative, positive)):
                fold(scores.masked_fill(~mask, -torch.inf), highest[which][rows], total[which][rows])
                count[which][rows] += mask.sum(dim=1)
            sum_pos[rows] += scores.masked_fill_(~positive, 0).sum(dim=1)
        lse = [(high + sums.log()).clamp(min=lowest) for high, sums in zip(highest, total, strict=True)]
        ctx.save_for_backward(query, vectors, offset, *lse, count[1])
        ctx.plan, ctx.rules = plan, rules
        ctx.mark_non_differentiable(*count)
        return lse[0], lse[1], sum_pos / count[1].clamp(min=1), count[1], count[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_neg: Tensor, of_pos: Tensor, of_mean: Tensor, *_: Any) -> tuple[Any, ...]:
        query, vectors, offset, lse_neg, lse_pos, positives = ctx.saved_tensors
        of_mean = of_mean / positives.clamp(min=1)

        def slope(scores: Tensor, rows: slice, positive: Tensor, negative: Tensor) -> Tensor:
            lse = torch.where(positive, lse_pos[rows, None], lse_neg[rows, None])
            factor = torch.where(positive, of_pos[rows, None], of_neg[rows, None])
            share = shifted_exp(scores, lse).masked_fill_(~(positive | negative), 0).mul_(factor)
            return share.add_(torch.where(positive, of_mean[rows, None], 0))

        return *_gradients(ctx, query, vectors, offset, slope), None, None


class MaskedLogistic(torch.autograd.Function):
    """Sum of softplus(s) over the negatives and softplus(-s) over the positives of every query, [B]; positives [B]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, vectors: Tensor, offset: Tensor | None, plan: Plan, rules: Candidates
    ) -> tuple[Tensor, Tensor]:
        total = query.new_zeros(plan.queries)
        positives = torch.zeros(plan.queries, dtype=torch.long, device=query.device)
        for rows, _, scores, positive, negative in masked_tiles(query, vectors, offset, plan, rules):
            each = softplus(torch.where(positive, -scores, scores)).masked_fill(~(positive | negative), 0)
            total[rows] += each.sum(dim=1)
            positives[rows] += positive.sum(dim=1)
        ctx.save_for_backward(query, vectors, offset)
        ctx.plan, ctx.rules = plan, rules
        ctx.mark_non_differentiable(positives)
        return total, positives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        query, vectors, offset = ctx.saved_tensors

        def slope(scores: Tensor, rows: slice, positive: Tensor, negative: Tensor) -> Tensor:
            each = torch.where(positive, -torch.sigmoid(-scores), torch.sigmoid(scores))
            return grad[rows, None] * each.masked_fill(~(positive | negative), 0)

        return *_gradients(ctx, query, vectors, offset, slope), None, None


def _gradients(ctx: Any, query: Tensor, vectors: Tensor, offset: Tensor | None, slope: Any) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[:3]
    of_query = torch.zeros_like(query) if wanted[0] else None
    of_vectors = torch.zeros_like(vectors) if wanted[1] else None
    of_offset = None if offset is None or not wanted[2] else torch.zeros_like(offset)
    for rows, columns, scores, positive, negative in masked_tiles(query, vectors, offset, ctx.plan, ctx.rules):
        slopes = slope(scores, rows, positive, negative)  # [b, c]
        if of_query is not None:
            of_query[rows].addmm_(slopes, vectors[columns])
        if of_vectors is not None:
            of_vectors[columns].addmm_(slopes.T, query[rows])
        if of_offset is not None:
            of_offset[columns] += slopes.sum(dim=0)
    return of_query, of_vectors, of_offset
