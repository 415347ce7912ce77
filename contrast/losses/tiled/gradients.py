"""The backward pass of the tiled sums: slopes d loss / d score, and from them the gradients of queries and candidates.

B queries, C candidates, P positives of each query's own, D dimensions, M listed positive pairs.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.distributed import gather
from contrast.errors import InputError
from contrast.losses.plan import PairLists
from contrast.losses.similarity import similarity

Slope = Callable[[Tensor, slice, slice], Tensor]  # (a tile, its rows, its columns) -> d loss / d scores of the tile
LOG2_E = 1 / math.log(2)
PAIRS_AT_ONCE = 8192  # pairs whose vectors are looked up in one piece: 4 MiB at 128 dimensions


class Options(NamedTuple):
    """What `NegativeSums` computes.

    lists     the pairs, and the tiles
    cosine    similarities are cosines; False: dot products
    logistic  sums of softplus(score); False: log-sum-exp of the scores
    ranked    the vectors are the queries of all ranks: each rank computes its own rows, and the gradient of both roles
    columns   the log-sum-exp over the queries of every candidate, too: the second direction of CLIP
    loss      every query has one listed positive, with the score s: softplus(log-sum-exp - s) takes the place of the
              log-sum-exp, and of that of the columns. The graph then has one node instead of four
    """

    lists: PairLists
    cosine: bool
    logistic: bool = False
    ranked: bool = False
    columns: bool = False
    loss: bool = False


class Saved(NamedTuple):
    """What the forward pass of `NegativeSums` keeps for the backward pass: its inputs, and what it made of them."""

    query: Tensor  # [B, D]
    vectors: Tensor | None  # [C, D]; None: the queries are the candidates
    positives: Tensor | None  # [B, P, D]
    scale: Tensor  # []
    offset: Tensor | None  # [C]
    q: Tensor  # the queries, divided by their lengths where similarities are cosines; v and p likewise
    q_norm: Tensor | None  # [B, 1], their lengths
    v: Tensor
    v_norm: Tensor | None
    p: Tensor | None
    p_norm: Tensor | None
    lse: Tensor  # [B], sums of the negatives
    column_lse: Tensor | None  # [C]
    similarities: Tensor  # [M]


def input_gradients(
    parts: Iterable[tuple[slice, slice, Tensor]],
    saved: Saved,
    grads: tuple[Tensor | None, ...],
    options: Options,
    needed: tuple[bool, ...],
    factor: float,
    shift: float | None,
    kept: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of the five inputs, from those of the outputs; only if `needed`, but that of the queries always.

    Their dtype is that of the sums: autograd returns them in the dtypes of the inputs.

    parts   (rows, columns, tile) of all tiles: scores or, if `kept`, their exponentials
    factor  the scale as a number; shift: what was subtracted from all scores, or None
    """
    q, v, p, sims, upper = saved.q, saved.v, saved.p, saved.similarities, saved.vectors is None
    lse, column_lse = saved.lse, saved.column_lse
    grad, column_grad, of_similarities, of_own = grads
    grad = q.new_zeros(len(q)) if grad is None else grad
    if options.loss:
        grad, column_grad, of_positive = of_loss(grad, column_grad, lse, column_lse, sims * factor)
        of_similarities = of_positive * factor
    if options.logistic:
        slope = of_softplus(grad)
    else:
        if options.ranked:
            column_grad, column_lse = gather(grad), gather(lse)
        elif upper:
            column_grad, column_lse = grad, lse
        slope = of_lse(grad, lse, column_grad, column_lse, shift, kept)
    of_q, of_v, of_offset = gradients(parts, q, v, slope, (needed[1] and not options.ranked, needed[4]), upper)
    of_scale = None
    if needed[3]:
        along = (of_q * q).sum()  # sum of slopes times similarities, twice where of_q holds both roles' gradients
        of_scale = along / 2 if upper or options.ranked else along
        of_scale = of_scale + (of_positive * sims).sum() if options.loss else of_scale
    of_q *= factor
    if of_v is not None:
        of_v *= factor
    elif needed[1]:
        of_v = torch.zeros_like(v)  # only the listed positives contribute to it
    if of_similarities is not None:
        add_pair_gradients(of_similarities, q, v, options.lists, of_q, of_q if upper else of_v)
    of_positives = None
    if of_own is not None and p is not None:
        of_q += (of_own[:, :, None] * p).sum(dim=1)  # [B, P, 1] x [B, P, D] -> [B, D]
        if needed[2]:
            of_positives = through_unit(of_own[:, :, None] * q[:, None], p, saved.p_norm)
    of_vectors = None if of_v is None else through_unit(of_v, v, saved.v_norm)
    return through_unit(of_q, q, saved.q_norm), of_vectors, of_positives, of_scale, of_offset


def gradients(
    parts: Iterable[tuple[slice, slice, Tensor]],
    query: Tensor,
    vectors: Tensor,
    slope: Slope,
    wanted: tuple[bool, bool],
    upper: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sums of slope times vector for every query, of slope times query for every vector, and of slopes for the offset.

    parts   (rows, columns, tile) of all tiles, in the form that `slope` takes
    wanted  whether the second and the third sum are computed; else they are None
    upper   queries and vectors are the same, and the slope is symmetric: the first sum is that of both roles
    """
    of_query = torch.zeros_like(query)
    of_vectors = torch.zeros_like(vectors) if wanted[0] and not upper else None
    of_offset = query.new_zeros(len(vectors)) if wanted[1] else None
    for rows, columns, tile in parts:
        slopes = slope(tile, rows, columns)  # [b, c]
        of_query[rows].addmm_(slopes, vectors[columns])
        if upper and columns.start > rows.start:
            of_query[columns].addmm_(slopes.T, query[rows])
        if of_vectors is not None:
            of_vectors[columns].addmm_(slopes.T, query[rows])
        if of_offset is not None:
            of_offset[columns] += slopes.sum(dim=0)
    return of_query, of_vectors, of_offset


def of_loss(
    grad: Tensor, column_grad: Tensor | None, lse: Tensor, column_lse: Tensor | None, positive: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of lse, column_lse and the positives' scores, [B], of softplus(lse - positive) in both directions."""
    grad = grad * (lse - positive).sigmoid_()
    if column_grad is None or column_lse is None:
        return grad, None, -grad
    column_grad = column_grad * (column_lse - positive).sigmoid_()
    return grad, column_grad, -(grad + column_grad)


def of_softplus(grad: Tensor) -> Slope:
    """g_i sigmoid(s_ij)."""
    return lambda scores, rows, columns: scores.sigmoid_().mul_(grad[rows, None])


def of_lse(
    grad: Tensor,
    lse: Tensor,
    column_grad: Tensor | None,
    column_lse: Tensor | None,
    shift: float | None,
    kept: bool = False,
) -> Slope:
    """g_i exp(s_ij - lse_i), plus h_j exp(s_ij - m_j) where the columns have a gradient h and a log-sum-exp m.

    Scores are in units of log 2. With a common shift, which is already subtracted from them, one exponential serves
    both terms: exp(s_ij - shift) (a_i + b_j).

    kept  the tiles hold that exponential already
    """
    if shift is None:
        lowest = torch.finfo(lse.dtype).min  # the lse of a query without negatives: times log2(e) it would be -inf
        row_lse = (lse * LOG2_E).clamp(min=lowest)
        of_columns = None if column_lse is None else (column_lse * LOG2_E).clamp(min=lowest)

        def both(scores: Tensor, rows: slice, columns: slice) -> Tensor:
            column_part = None
            if column_grad is not None and of_columns is not None:
                column_part = (scores - of_columns[columns]).exp2_().mul_(column_grad[columns])
            row_part = scores.sub_(row_lse[rows, None]).exp2_().mul_(grad[rows, None])
            return row_part if column_part is None else row_part.add_(column_part)

        return both
    of_rows = _share(grad, lse, shift)
    of_columns = of_rows if column_grad is grad else None
    if of_columns is None and column_grad is not None and column_lse is not None:
        of_columns = _share(column_grad, column_lse, shift)

    def slope(tile: Tensor, rows: slice, columns: slice) -> Tensor:
        factor = of_rows[rows, None] if of_columns is None else of_rows[rows, None] + of_columns[columns]
        return tile * factor if kept else tile.exp2_().mul_(factor)

    return slope


def _share(grad: Tensor, lse: Tensor, shift: float) -> Tensor:
    """g exp(shift - lse); 0 for a query without negatives, whose lse is the dtype's lowest number."""
    total = (lse - shift if shift else lse).exp()
    return (grad / total).masked_fill_(total == 0, 0)


def add_pair_gradients(
    grad: Tensor, query: Tensor, vectors: Tensor, lists: PairLists, of_query: Tensor, of_vectors: Tensor | None
) -> None:
    """Adds the gradients of `pair_products` to `of_query` [B, D] and `of_vectors` [C, D]."""
    row, column = lists.positive
    if lists.one_positive:
        of_query.addcmul_(grad[:, None], vectors.index_select(0, column))
        if of_vectors is not None:
            of_vectors.index_add_(0, column, query * grad[:, None])
        return
    for part in pieces(len(row)):
        factor = grad[part, None]  # [m, 1]
        of_query.index_add_(0, row[part], vectors.index_select(0, column[part]).mul_(factor))
        if of_vectors is not None:
            of_vectors.index_add_(0, column[part], query.index_select(0, row[part]).mul_(factor))


def pieces(pairs: int) -> Iterator[slice]:
    return (slice(start, min(start + PAIRS_AT_ONCE, pairs)) for start in range(0, pairs, PAIRS_AT_ONCE))


def through_unit(grad: Tensor, unit_vectors: Tensor, length: Tensor | None) -> Tensor:
    """The gradient of vectors [..., D] from that of their unit vectors: at a right angle to them, over their length."""
    if length is None:
        return grad
    along = (grad * unit_vectors).sum(dim=-1, keepdim=True)
    return torch.addcmul(grad, along, unit_vectors, value=-1).div_(length)


def differentiable(
    options: Options, inputs: tuple[Tensor | None, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The same gradients by autograd, from the whole matrix: these can be differentiated again."""
    if options.ranked:
        raise InputError("the gathered tiles have no second derivative: tiled=false computes it from the whole matrix")
    # aliases: queries and vectors may be one tensor, but each needs a gradient of its own here
    inputs = tuple(None if x is None else x.view_as(x) for x in inputs)
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    outputs = zip(_as_matrix(options, *inputs), grads, strict=True)
    out, of_out = zip(*((x, g) for x, g in outputs if x is not None and g is not None), strict=True)
    result = iter(torch.autograd.grad(out, wanted, of_out, create_graph=True, allow_unused=True))
    return tuple(next(result) if x is not None and x.requires_grad else None for x in inputs)


def _as_matrix(
    options: Options,
    query: Tensor | None,
    vectors: Tensor | None,
    positives: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """What `NegativeSums` returns, as plain differentiable operations on the whole matrix."""
    assert query is not None
    assert scale is not None
    lists, others = options.lists, query if vectors is None else vectors
    values = similarity(query, others, options.cosine)  # [B, C]
    scores = values * scale if offset is None else values * scale + offset
    valid = torch.ones_like(values, dtype=torch.bool)
    for rows, columns, excluded in lists.tiles.parts:
        if excluded is not None:
            width = columns.stop - columns.start
            valid[rows.start + excluded // width, columns.start + excluded % width] = False
    own = None if positives is None else similarity(query, positives, options.cosine)
    lowest = torch.finfo(values.dtype).min
    if options.logistic:
        scores = torch.where(scores.isneginf(), lowest, scores)
        negatives, column_lse = F.softplus(scores).masked_fill(~valid, 0).sum(dim=1), None
    else:
        scores = scores.masked_fill(~valid, lowest).clamp(min=lowest)
        negatives, column_lse = scores.logsumexp(dim=1), scores.logsumexp(dim=0) if options.columns else None
    listed = values[lists.positive.row, lists.positive.column]
    if options.loss:
        negatives = F.softplus(negatives - listed * scale)
        column_lse = None if column_lse is None else F.softplus(column_lse - listed * scale)
    return negatives, column_lse, listed, own
