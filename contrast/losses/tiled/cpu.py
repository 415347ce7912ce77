"""Sums over the negatives of every query, tile by tile in torch: the whole matrix of scores is never in memory.

B queries, C candidates, P positives of each query's own, D dimensions, M listed positive pairs. A score is
scale * similarity(query, candidate) + offset(candidate).

The forward pass keeps one number for each query. The backward pass computes the tiles again, unless the scores are so
few that keeping them is cheaper. Pairs that are no negatives are listed in `contrast.losses.plan` and left out.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.losses.plan import PairLists, Scoring, Tiles
from contrast.losses.similarity import with_margin
from contrast.losses.tiled.gradients import LOG2_E, Options, Saved, differentiable, input_gradients, pieces
from contrast.losses.tiled.online import online_lse

MAX_KEPT = 2**22  # up to so many scores, their exponentials are kept for the backward pass: 16 MiB in float32
MAX_SPREAD = 120.0  # exp of half of it, and a sum of many such, are normal float32 numbers, and so are their inverses


class Sums(NamedTuple):
    """What `NegativeSums` returns, and the scores of the positives: margin(similarity) / temperature - log_q.

    negatives     [B], log-sum-exp of the negatives' scores (the dtype's lowest number where there are none), or the sum
                  of their softplus
    columns       [C], the same sum over the queries for every candidate, or None
    similarities  [M], of the listed positives
    own           [B, P], similarities of each query's own positives, or None
    listed        [M], scores of the listed positives; own_scores [B, P], those of each query's own, or None
    """

    negatives: Tensor
    columns: Tensor | None
    similarities: Tensor
    own: Tensor | None
    listed: Tensor | None = None
    own_scores: Tensor | None = None


def list_sums(
    query: Tensor,
    candidates: Candidates,
    scoring: Scoring,
    lists: PairLists,
    factor: float = 1.0,
    bias: Tensor | None = None,
    logistic: bool = False,
    columns: bool = False,
    loss: bool = False,
) -> Sums:
    """The `Sums` of `factor` times the scores, plus the bias; around a ring, over the candidates of all ranks."""
    vectors, scale = candidates.vectors, factor / scoring.temperature
    if query.shape[-1] != vectors.shape[-1]:
        raise InputError(f"queries have {query.shape[-1]} dimensions, candidates {vectors.shape[-1]}")
    if lists.ring is not None:
        sums = Sums(*lists.ring(query, vectors, scoring.cosine, scale, bias, logistic))
        return _with_scores(sums, query, candidates, scoring, lists)
    offset = bias if bias is None else bias.expand(len(vectors))
    if scoring.correction and candidates.log_q is not None:
        log_q = factor * candidates.log_q
        offset = -log_q if offset is None else offset - log_q
    if lists.absent is not None:
        offset = scale.new_zeros(len(vectors)) if offset is None else offset
        offset = offset.masked_fill(lists.absent, -torch.inf)
    symmetric = candidates.symmetric and offset is None and not logistic
    options = Options(lists, scoring.cosine, logistic, symmetric and vectors is not query, columns, loss)
    others = None if symmetric and vectors is query else vectors
    sums = Sums(*NegativeSums.apply(query, others, candidates.positives, scale, offset, options))
    return sums if loss else _with_scores(sums, query, candidates, scoring, lists)


def _with_scores(sums: Sums, query: Tensor, candidates: Candidates, scoring: Scoring, lists: PairLists) -> Sums:
    def scores(values: Tensor, query: Tensor, vectors: Tensor, log_q: Tensor | None) -> Tensor:
        if scoring.margin is not None:
            values = with_margin(scoring.margin, scoring.cosine, values, query, vectors)
        values = values / scoring.temperature
        return values - log_q if scoring.correction and log_q is not None else values

    (row, column), vectors, log_q, own = lists.positive, candidates.vectors, candidates.log_q, sums.own
    dots = scoring.margin is not None and not scoring.cosine  # then the margin needs the lengths of each pair's vectors
    pairs = (query[row], vectors[column]) if dots else (query, vectors)
    listed = scores(sums.similarities, *pairs, None if log_q is None else log_q[column])
    if own is not None and candidates.positives is not None:
        own = scores(own, query[:, None], candidates.positives, candidates.positives_log_q)
    return sums._replace(listed=listed, own_scores=own)


class NegativeSums(torch.autograd.Function):
    """`Sums` of query [B, D], vectors [C, D], positives [B, P, D] or None, scale [], offset [C] or None, and `Options`.

    vectors=None: the queries are the candidates, and each tile above the diagonal serves its rows and its columns.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        vectors: Tensor | None,
        positives: Tensor | None,
        scale: Tensor,
        offset: Tensor | None,
        options: Options,
    ) -> tuple[Tensor | None, ...]:
        lists, cosine, upper = options.lists, options.cosine, vectors is None
        tiles = lists.tiles
        dtype = torch.promote_types(query.dtype, torch.float32 if vectors is None else vectors.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        q, q_norm = _unit(query, dtype, cosine)
        v, v_norm = (q, q_norm) if vectors is None else _unit(vectors, dtype, cosine)
        factor = scale.item()  # a number is several operations cheaper than a scalar tensor
        shift = None if options.logistic else common_shift(q, v, factor, offset, cosine)
        few = tiles.queries * tiles.candidates <= MAX_KEPT
        kept: list[Tensor] | None = None
        if few and shift is not None and not options.logistic and any(ctx.needs_input_grad):
            kept = []
        columns = q.new_zeros(len(v)) if options.columns else None
        if options.logistic:
            negatives = row_sums(q * factor, v, moved_offset(offset, None, 1.0, dtype), tiles, softplus)
        else:
            scaled, moved = q * (factor * LOG2_E), moved_offset(offset, shift, LOG2_E, dtype)
            if shift is None:
                negatives = online_lse(tile_scores(scaled, v, moved, tiles), q.new_empty(len(q)), columns)
            else:
                sums = row_sums(scaled, v, moved, tiles, torch.exp2_, upper, columns, kept)
                negatives = as_lse(sums, shift)
                columns = None if columns is None else as_lse(columns, shift)
        similarities = pair_products(q, v, lists)
        lse, column_lse = negatives, columns
        if options.loss:
            positive = similarities * factor
            negatives = F.softplus(lse - positive)
            columns = None if columns is None else F.softplus(columns - positive)
        own = p = p_norm = None
        if positives is not None:
            p, p_norm = _unit(positives, dtype, cosine)
            own = (p * q[:, None]).sum(dim=2)  # [B, P, D] x [B, 1, D] -> [B, P]
        saved = Saved(
            query, vectors, positives, scale, offset, q, q_norm, v, v_norm, p, p_norm, lse, column_lse, similarities
        )
        ctx.save_for_backward(*saved, *(kept or []))
        ctx.has_kept, ctx.shift, ctx.factor, ctx.options = kept is not None, shift, factor, options
        ctx.set_materialize_grads(False)
        return negatives, columns, similarities, own

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        fields = len(Saved._fields)
        saved, kept = Saved(*ctx.saved_tensors[:fields]), ctx.saved_tensors[fields:]
        options, shift, upper = ctx.options, ctx.shift, saved.vectors is None
        if torch.is_grad_enabled():  # create_graph=True: the gradients will be differentiated again
            return *differentiable(options, saved[:5], grads), None
        tiles = options.lists.tiles
        parts: Iterable[tuple[slice, slice, Tensor]]
        if ctx.has_kept:
            computed = [part for part in tiles.parts if not upper or part[1].start >= part[0].start]
            parts = ((rows, columns, tile) for (rows, columns, _), tile in zip(computed, kept, strict=True))
        else:
            unit = 1.0 if options.logistic else LOG2_E
            moved = moved_offset(saved.offset, shift, unit, saved.q.dtype)
            parts = tile_scores(saved.q * (ctx.factor * unit), saved.v, moved, tiles, upper)
        needed = ctx.needs_input_grad
        return *input_gradients(parts, saved, grads, options, needed, ctx.factor, shift, ctx.has_kept), None


def tile_scores(
    query: Tensor, vectors: Tensor, offset: Tensor | None, tiles: Tiles, upper: bool = False, reuse: bool = True
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, query . vector + offset) of one tile after another; excluded pairs have the score -inf.

    upper  only the (square) tiles on and above the diagonal; reuse  each tile's scores overwrite those of the last
    """
    buffer = query.new_empty(tiles.rows * tiles.columns) if reuse else None
    for rows, columns, excluded in tiles.parts:
        if upper and columns.start < rows.start:
            continue
        shape = rows.stop - rows.start, columns.stop - columns.start
        scores = query.new_empty(shape) if buffer is None else buffer[: shape[0] * shape[1]].view(shape)
        q, v = (query, vectors) if tiles.single else (query[rows], vectors[columns])
        torch.mm(q, v.T, out=scores)  # [b, D] x [c, D] -> [b, c]; with `out` autocast does not apply
        if offset is not None:
            scores += offset[columns]
        if excluded is not None:
            scores.view(-1).index_fill_(0, excluded, -torch.inf)
        yield rows, columns, scores


def row_sums(
    query: Tensor,
    vectors: Tensor,
    offset: Tensor | None,
    tiles: Tiles,
    value: Callable[[Tensor], Tensor],
    upper: bool = False,
    column_sums: Tensor | None = None,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Sum over the columns of value(scores), [B]. `value` may overwrite the scores.

    column_sums  [C], to which the sums over the rows are added
    kept         a list to which the values of each tile are appended
    """
    total = None if tiles.single else query.new_zeros(tiles.queries)
    for rows, columns, scores in tile_scores(query, vectors, offset, tiles, upper, reuse=kept is None):
        part = value(scores)
        if total is None:
            total = part.sum(dim=1)
        else:
            total[rows] += part.sum(dim=1)
        if upper and columns.start > rows.start:
            total[columns] += part.sum(dim=0)
        if column_sums is not None:
            column_sums[columns] += part.sum(dim=0)
        if kept is not None:
            kept.append(part)
    return query.new_zeros(tiles.queries) if total is None else total


def as_lse(total: Tensor, shift: float) -> Tensor:
    lse = total.log().clamp_(min=torch.finfo(total.dtype).min)
    return lse.add_(shift) if shift else lse


def common_shift(query: Tensor, vectors: Tensor, scale: float, offset: Tensor | None, cosine: bool) -> float | None:
    """The middle of all possible scores, by the vectors' lengths, if they span at most MAX_SPREAD; None otherwise.

    Without an offset it is 0, and nothing has to be subtracted: always for cosines at a temperature of 1/60 or more.
    """
    if not len(query) or not len(vectors):
        return 0.0
    bound = scale
    if not cosine:
        lengths = [torch.linalg.vector_norm(x, dim=1).max() for x in (query, vectors)]
        bound = scale * float(lengths[0] * lengths[1])
    low, high = -bound, bound
    if offset is not None:
        present = offset > -torch.inf  # -inf: a candidate that does not count
        if not bool(present.any()):
            return 0.0
        low += float(torch.where(present, offset, torch.inf).amin())
        high += float(offset.amax())
    return (low + high) / 2 if high - low <= MAX_SPREAD else None


def softplus(scores: Tensor) -> Tensor:
    """log(1 + exp(scores)) to the last digit or two, in place; five times as fast on a CPU as torch's log1p.

    With u = exp(-|s|) and y = 1 + u as rounded, log(1 + u) = log(y) + (u - (y - 1)) / y.
    """
    small = scores.abs().mul_(-LOG2_E).exp2_()  # u
    one_more = small + 1  # y
    small.sub_(one_more - 1).div_(one_more)
    return scores.clamp_(min=0).add_(one_more.log_()).add_(small)


def pair_products(query: Tensor, vectors: Tensor, lists: PairLists) -> Tensor:
    """q_row . v_column of every listed positive pair, [M], without a tensor [M, D]."""
    row, column = lists.positive
    if lists.one_positive:
        return (query * vectors.index_select(0, column)).sum(dim=1)  # [B, D] -> [B]
    if not len(row):
        return query.new_empty(0)
    parts = [(query.index_select(0, row[m]) * vectors.index_select(0, column[m])).sum(dim=1) for m in pieces(len(row))]
    return torch.cat(parts)  # pieces of [m, D] -> [M]


def moved_offset(offset: Tensor | None, shift: float | None, factor: float, dtype: torch.dtype) -> Tensor | None:
    """(offset - shift) * factor, which subtracts a common shift from the scores. Without an offset the shift is 0."""
    return None if offset is None else (offset.detach().to(dtype) - (shift or 0.0)) * factor


def _unit(vectors: Tensor, dtype: torch.dtype, cosine: bool) -> tuple[Tensor, Tensor | None]:
    """As `contrast.losses.similarity.unit`, and the lengths [..., 1], of which that of a zero vector is 1."""
    vectors = vectors.to(dtype)
    if not cosine:
        return vectors, None
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    length.masked_fill_(length == 0, 1)
    return vectors / length, length
