"""Sums over the negatives of every query, tile by tile in torch: memory linear in queries and candidates.

B queries, C candidates, D dimensions. Scores are s = q . c + offset, the queries already divided by the temperature.
Forward keeps one number for each query; backward computes the tiles again.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from contrast.losses.tiled.once import once_differentiable
from contrast.losses.tiled.plan import Plan

Slope = Callable[[Tensor, slice, slice], Tensor]  # (scores of a tile, rows, columns) -> d loss / d scores
LOG2_E = 1 / math.log(2)
SPREAD = 120.0  # exp of half of it, and a sum of many such, are normal float32 numbers, and so are their inverses


def tiles(
    query: Tensor, vectors: Tensor, offset: Tensor | None, plan: Plan, upper: bool = False
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, scores) of tile after tile; what does not count is -inf. The scores are overwritten by the next.

    upper  only the tiles on and above the diagonal, which are square
    """
    buffer = query.new_empty(plan.rows * plan.columns)
    for i in range(0, plan.queries, plan.rows):
        rows = slice(i, min(i + plan.rows, plan.queries))
        for j in range(i if upper else 0, plan.candidates, plan.columns):
            columns = slice(j, min(j + plan.columns, plan.candidates))
            shape = rows.stop - i, columns.stop - j
            scores = buffer[: shape[0] * shape[1]].view(shape)
            torch.mm(query[rows], vectors[columns].T, out=scores)  # [b, D] x [c, D] -> [b, c]
            if offset is not None:
                scores += offset[columns]
            out = plan.left_out(i, j)
            if out is not None:
                scores[out] = -torch.inf
            yield rows, columns, scores


def row_sums(
    query: Tensor,
    vectors: Tensor,
    offset: Tensor | None,
    plan: Plan,
    value: Callable[[Tensor], Tensor],
    upper: bool = False,
) -> Tensor:
    """Sum over the columns of value(scores), [B]."""
    total = query.new_zeros(plan.queries)
    for rows, columns, scores in tiles(query, vectors, offset, plan, upper):
        part = value(scores)
        total[rows] += part.sum(dim=1)
        if upper and columns.start > rows.start:
            total[columns] += part.sum(dim=0)
    return total


def block_lse(query: Tensor, vectors: Tensor, offset: Tensor | None, plan: Plan, shift: float | None) -> Tensor:
    """Log-sum-exp over the columns, [B], with a common shift (`common_shift`) or, without one, a running maximum."""
    if shift is None:
        lse = online_lse(query, vectors, offset, plan)
    else:
        lse = row_sums(query, vectors, offset, plan, lambda s: shifted_exp(s, shift)).log() + shift
    return lse.clamp(min=torch.finfo(lse.dtype).min)


def online_lse(query: Tensor, vectors: Tensor, offset: Tensor | None, plan: Plan) -> Tensor:
    """Log-sum-exp over the columns with a running maximum, [B] (Milakov and Gimelshein 2018)."""
    lowest = torch.finfo(query.dtype).min
    highest, total = query.new_full((plan.queries,), lowest), query.new_zeros(plan.queries)
    for rows, _, scores in tiles(query, vectors, offset, plan):
        fold(scores, highest[rows], total[rows])
    return highest + total.log()


def fold(scores: Tensor, highest: Tensor, total: Tensor) -> None:
    """Takes a tile's scores [b, c], which are overwritten, into a running maximum [b] and a sum of exp less it [b]."""
    new = torch.maximum(highest, scores.amax(dim=1))
    part = shifted_exp(scores, new[:, None]).sum(dim=1)
    total.mul_((highest - new).exp()).add_(part)
    highest.copy_(new)


def gradients(
    query: Tensor,
    vectors: Tensor,
    offset: Tensor | None,
    plan: Plan,
    slope: Slope,
    wanted: tuple[bool, bool, bool],
    upper: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of queries, vectors and offset where d loss / d scores is slope(scores, rows, columns).

    upper  queries and vectors are the same, and the slope symmetric: the first gradient is that of both roles
    """
    of_query = torch.zeros_like(query) if wanted[0] else None
    of_vectors = torch.zeros_like(vectors) if wanted[1] and not upper else None
    of_offset = query.new_zeros(plan.candidates) if wanted[2] else None
    for rows, columns, scores in tiles(query, vectors, offset, plan, upper):
        slopes = slope(scores, rows, columns)  # [b, c]
        if of_query is not None:
            of_query[rows].addmm_(slopes, vectors[columns])
            if upper and columns.start > rows.start:
                of_query[columns].addmm_(slopes.T, query[rows])
        if of_vectors is not None:
            of_vectors[columns].addmm_(slopes.T, query[rows])
        if of_offset is not None:
            of_offset[columns] += slopes.sum(dim=0)
    return of_query, of_vectors, of_offset


class Lse(torch.autograd.Function):
    """Log-sum-exp over the negatives of every query, [B]; the dtype's lowest number where there are none.

    One shift serves all scores while they lie within SPREAD of each other, which their lengths tell: always for cosines
    at a temperature of 1/60 or more. Otherwise a running maximum.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, vectors: Tensor, offset: Tensor | None, plan: Plan) -> Tensor:
        lse = block_lse(query, vectors, offset, plan, common_shift(query, vectors, offset))
        ctx.save_for_backward(query, vectors, offset, lse)
        ctx.plan = plan
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, vectors, offset, lse = ctx.saved_tensors
        slope = of_lse(grad, lse)
        return *gradients(query, vectors, offset, ctx.plan, slope, ctx.needs_input_grad[:3]), None


class SymmetricLse(torch.autograd.Function):
    """As `Lse`, where the vectors are the queries themselves: each tile above the diagonal serves rows and columns."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, shift: float, plan: Plan) -> Tensor:
        total = row_sums(vectors, vectors, None, plan, lambda s: shifted_exp(s, shift), upper=True)
        lse = (total.log() + shift).clamp(min=torch.finfo(total.dtype).min)
        ctx.save_for_backward(vectors, lse)
        ctx.shift, ctx.plan = shift, plan
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        vectors, lse = ctx.saved_tensors
        slope = both_roles(grad, lse, grad, lse, ctx.shift)
        found, _, _ = gradients(vectors, vectors, None, ctx.plan, slope, (True, False, False), upper=True)
        return found, None, None


class SoftplusSum(torch.autograd.Function):
    """Sum of softplus(s) over the negatives of every query, [B]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, vectors: Tensor, offset: Tensor | None, plan: Plan) -> Tensor:
        ctx.save_for_backward(query, vectors, offset)
        ctx.plan = plan
        return row_sums(query, vectors, offset, plan, softplus)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, vectors, offset = ctx.saved_tensors
        slope = of_softplus(grad)
        return *gradients(query, vectors, offset, ctx.plan, slope, ctx.needs_input_grad[:3]), None


def of_lse(grad: Tensor, lse: Tensor) -> Slope:
    """g_i exp(s_ij - lse_i)."""
    return lambda scores, rows, columns: shifted_exp(scores, lse[rows, None]).mul_(grad[rows, None])


def of_softplus(grad: Tensor) -> Slope:
    """g_i sigmoid(s_ij)."""
    return lambda scores, rows, columns: scores.sigmoid_().mul_(grad[rows, None])


def both_roles(
    row_grad: Tensor, row_lse: Tensor, column_grad: Tensor, column_lse: Tensor, shift: float | None
) -> Slope:
    """g_i exp(s_ij - lse_i) + g_j exp(s_ij - lse_j); with a common shift by one exp, exp(s_ij - shift) (a_i + a_j)."""
    if shift is None:
        of_row, of_column = of_lse(row_grad, row_lse), column_grad
        return lambda scores, rows, columns: (
            shifted_exp(scores.clone(), column_lse[columns])
            .mul_(of_column[columns])
            .add_(of_row(scores, rows, columns))
        )
    of_rows, of_columns = _share(row_grad, row_lse, shift), _share(column_grad, column_lse, shift)

    def slope(scores: Tensor, rows: slice, columns: slice) -> Tensor:
        return shifted_exp(scores, shift).mul_(of_rows[rows, None] + of_columns[columns])

    return slope


def _share(grad: Tensor, lse: Tensor, shift: float) -> Tensor:
    """g exp(shift - lse); 0 for a query without negatives, whose lse is the lowest number."""
    return torch.where(lse > torch.finfo(lse.dtype).min, grad * (shift - lse).exp(), 0)


def common_shift(query: Tensor, vectors: Tensor, offset: Tensor | None) -> float | None:
    """The middle of all scores that there can be, by the vectors' lengths, if they span at most SPREAD; None otherwise.

    Without an offset it is 0: nothing has to be subtracted.
    """
    if not len(query) or not len(vectors):
        return 0.0
    bound = torch.linalg.vector_norm(query, dim=1).max() * torch.linalg.vector_norm(vectors, dim=1).max()
    low, high = -bound, bound
    if offset is not None:
        there = offset > -torch.inf  # -inf: a column that does not count
        if not bool(there.any()):
            return 0.0
        low = low + torch.where(there, offset, torch.inf).amin()
        high = high + offset.amax()
    low, high = low.item(), high.item()
    return (low + high) / 2 if high - low <= SPREAD else None


def shifted_exp(scores: Tensor, shift: Tensor | float) -> Tensor:
    """exp(scores - shift), in place; as a power of two, which torch finds three times as fast on a CPU."""
    if isinstance(shift, Tensor) or shift:
        scores = scores.sub_(shift)
    return scores.mul_(LOG2_E).exp2_()


def softplus(scores: Tensor) -> Tensor:
    """log(1 + exp(scores)) to the last digit or two, in place; five times as fast on a CPU as torch's log1p.

    With u = exp(-|s|) and y = 1 + u as rounded, log(1 + u) = log(y) + (u - (y - 1)) / y.
    """
    small = shifted_exp(scores.abs().neg_(), 0.0)  # u
    one_more = small + 1  # y
    small.sub_(one_more - 1).div_(one_more)
    return scores.clamp_(min=0).add_(one_more.log_()).add_(small)
