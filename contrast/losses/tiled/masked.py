"""The same sums where positives are many (SupCon with few classes): each tile makes its masks from the rules on ids.

B queries, C candidates, D dimensions. Scores are s = q . c + offset.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.losses.plan import Scoring, Tiles
from contrast.losses.similarity import same_precision, unit
from contrast.losses.tiled.cpu import softplus, tile_scores
from contrast.losses.tiled.gradients import LOG2_E, gradients
from contrast.losses.tiled.online import fold, natural

MaskedTile = tuple[slice, slice, Tensor, Tensor, Tensor]  # rows, columns, scores, positive, negative
MaskedSlope = Callable[[Tensor, slice, Tensor, Tensor], Tensor]  # (scores, rows, positive, negative) -> slopes


def masked_statistics(query: Tensor, candidates: Candidates, scoring: Scoring) -> tuple[Tensor, ...]:
    """The first five of `contrast.losses.softmax.Statistics`, of the shared candidates."""
    return MaskedStatistics.apply(*_prepared(query, candidates, scoring), candidates)


def masked_logistic(query: Tensor, candidates: Candidates, scoring: Scoring, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of softplus(s + bias) over the negatives and softplus(-s - bias) over the positives, [B]; positives [B]."""
    query, vectors, offset = _prepared(query, candidates, scoring)
    bias = bias.to(query.dtype).expand(len(vectors))
    return MaskedLogistic.apply(query, vectors, bias if offset is None else offset + bias, candidates)


def _prepared(query: Tensor, candidates: Candidates, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries and vectors whose products, plus an offset [C] if there is one, are the scores."""
    with torch.autocast(query.device.type, enabled=False):
        query, vectors = same_precision(query, candidates.vectors)
        if scoring.cosine:
            query, vectors = unit(query), unit(vectors)
        offset = None
        if scoring.correction and candidates.log_q is not None:
            offset = -candidates.log_q.to(query.dtype)
        return query / scoring.temperature, vectors, offset


def _masked_tiles(
    query: Tensor, vectors: Tensor, offset: Tensor | None, candidates: Candidates
) -> Iterator[MaskedTile]:
    for rows, columns, scores in tile_scores(query, vectors, offset, Tiles(len(query), len(vectors), None)):
        positive, valid = candidates.tile(rows, columns).masks()
        yield rows, columns, scores, positive, valid & ~positive


class MaskedStatistics(torch.autograd.Function):
    """(lse_neg, lse_pos, mean_pos, num_positives, num_negatives), each [B], with running maxima."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, vectors: Tensor, offset: Tensor | None, candidates: Candidates
    ) -> tuple[Tensor, ...]:
        lowest, queries = torch.finfo(query.dtype).min, len(query)
        highest = [query.new_full((queries,), lowest) for _ in range(2)]  # of negatives, of positives
        total = [query.new_zeros(queries) for _ in range(2)]
        count = [torch.zeros(queries, dtype=torch.long, device=query.device) for _ in range(2)]
        sum_pos = query.new_zeros(queries)
        for rows, _, scores, positive, negative in _masked_tiles(query, vectors, offset, candidates):
            for which, mask in enumerate((negative, positive)):
                fold((scores * LOG2_E).masked_fill_(~mask, -torch.inf), highest[which][rows], total[which][rows])
                count[which][rows] += mask.sum(dim=1)
            sum_pos[rows] += scores.masked_fill_(~positive, 0).sum(dim=1)
        lse = [natural(high, sums) for high, sums in zip(highest, total, strict=True)]
        ctx.save_for_backward(query, vectors, offset, *lse, count[1])
        ctx.candidates = candidates
        ctx.mark_non_differentiable(*count)
        return lse[0], lse[1], sum_pos / count[1].clamp(min=1), count[1], count[0]

    @staticmethod
    def backward(ctx: Any, of_neg: Tensor, of_pos: Tensor, of_mean: Tensor, *_: object) -> tuple[Tensor | None, ...]:
        query, vectors, offset, lse_neg, lse_pos, num_positives = ctx.saved_tensors
        of_mean = of_mean / num_positives.clamp(min=1)

        def slope(scores: Tensor, rows: slice, positive: Tensor, negative: Tensor) -> Tensor:
            lse = torch.where(positive, lse_pos[rows, None], lse_neg[rows, None])
            factor = torch.where(positive, of_pos[rows, None], of_neg[rows, None])
            share = scores.sub_(lse).mul_(LOG2_E).exp2_().masked_fill_(~(positive | negative), 0).mul_(factor)
            return share.add_(torch.where(positive, of_mean[rows, None], 0))

        return *_gradients(ctx, query, vectors, offset, slope), None


class MaskedLogistic(torch.autograd.Function):
    """Sum of softplus(s) over the negatives and softplus(-s) over the positives of every query, [B]; positives [B]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, vectors: Tensor, offset: Tensor | None, candidates: Candidates
    ) -> tuple[Tensor, Tensor]:
        total = query.new_zeros(len(query))
        num_positives = torch.zeros(len(query), dtype=torch.long, device=query.device)
        for rows, _, scores, positive, negative in _masked_tiles(query, vectors, offset, candidates):
            each = softplus(torch.where(positive, -scores, scores)).masked_fill(~(positive | negative), 0)
            total[rows] += each.sum(dim=1)
            num_positives[rows] += positive.sum(dim=1)
        ctx.save_for_backward(query, vectors, offset)
        ctx.candidates = candidates
        ctx.mark_non_differentiable(num_positives)
        return total, num_positives

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: object) -> tuple[Tensor | None, ...]:
        query, vectors, offset = ctx.saved_tensors

        def slope(scores: Tensor, rows: slice, positive: Tensor, negative: Tensor) -> Tensor:
            each = torch.where(positive, -torch.sigmoid(-scores), torch.sigmoid(scores))
            return grad[rows, None] * each.masked_fill(~(positive | negative), 0)

        return *_gradients(ctx, query, vectors, offset, slope), None


def _gradients(
    ctx: Any, query: Tensor, vectors: Tensor, offset: Tensor | None, slope: MaskedSlope
) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise InputError("tiles with masks have no second derivative: tiled=false computes it from the whole matrix")
    tiles = _masked_tiles(query, vectors, offset, ctx.candidates)
    parts = ((rows, columns, slope(scores, rows, *masks)) for rows, columns, scores, *masks in tiles)
    return gradients(parts, query, vectors, lambda slopes, rows, columns: slopes, ctx.needs_input_grad[1:3])
