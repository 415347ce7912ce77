"""Candidates that are passed around a ring of ranks, so that no rank ever holds all of them.

B queries of this rank, W ranks, C candidates of a rank, D dimensions. Every rank ends with the whole gradient of its
own rows, from the losses of all ranks.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from contrast.candidates import Candidates
from contrast.distributed import rank, sum_over_ranks, world_size
from contrast.errors import InputError
from contrast.losses.plan import PairLists, Tiles, excluded_pairs, positive_pairs
from contrast.losses.similarity import same_precision, unit
from contrast.losses.tiled.cpu import as_lse, common_shift, moved_offset, row_sums, softplus, tile_scores
from contrast.losses.tiled.gradients import LOG2_E, gradients, of_lse, of_softplus
from contrast.losses.tiled.online import online_lse


def ring_lists(candidates: Candidates, lists: PairLists) -> PairLists:
    """The lists of this rank's part, with the tiles of all parts and the negatives of all ranks.

    Raises InputError, on every rank, if any query has a positive on another rank: a ring scores positives of its own
    rank only.
    """
    queries, count = len(candidates.query_ids), len(candidates)
    ids, groups = candidates.ids, candidates.excluded_groups
    all_tiles, num_negatives = [lists.tiles], lists.num_negatives
    elsewhere = candidates.query_ids.new_zeros(2)  # positives on other ranks, and absent candidates
    elsewhere[1] += 0 if lists.absent is None else int(lists.absent.sum())
    for _ in range(1, world_size()):
        moved = iter(pass_on([each for each in (ids, groups) if each is not None]))
        ids = None if ids is None else next(moved)
        groups = None if groups is None else next(moved)
        part = replace(candidates, ids=ids, excluded_groups=groups, self_index=None)
        positive = positive_pairs(part, queries * count)
        assert positive is not None
        excluded = excluded_pairs(part, positive, queries * count)
        assert excluded is not None
        elsewhere[0] += len(positive.row)
        num_negatives = num_negatives + count - torch.bincount(excluded.row, minlength=queries)
        all_tiles.append(Tiles(queries, count, excluded))
    total, absent = sum_over_ranks(elsewhere).tolist()
    if absent:
        raise InputError(f"{absent} candidates are absent, which a ring does not support: use ring=false")
    if total:
        raise InputError(
            f"{total} positives are on other ranks than their query, and a ring takes positives of the same rank only: "
            "ring=false gathers the candidates"
        )
    return lists._replace(num_negatives=num_negatives, ring=partial(ring_sums, lists, all_tiles, candidates.symmetric))


def pass_on(tensors: list[Tensor]) -> list[Tensor]:
    """Sends this rank's tensors to the next rank and returns those of the rank before; shapes are equal everywhere."""
    after, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    sent = [tensor.contiguous() for tensor in tensors]
    received = [torch.empty_like(tensor) for tensor in sent]
    operations = [dist.P2POp(dist.isend, tensor, after) for tensor in sent]
    operations += [dist.P2POp(dist.irecv, tensor, before) for tensor in received]
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    return received


def ring_sums(
    lists: PairLists,
    all_tiles: list[Tiles],
    symmetric: bool,
    query: Tensor,
    vectors: Tensor,
    cosine: bool,
    scale: Tensor,
    bias: Tensor | None,
    logistic: bool,
) -> tuple[Tensor, None, Tensor, None]:
    """A `contrast.losses.plan.RingSums`, if its first three arguments are given.

    lists      of this rank's part; all_tiles: those of one rank after another, this rank's first
    symmetric  of the candidates
    """
    same = vectors is query
    query, vectors = same_precision(query, vectors)
    if cosine:
        query = unit(query)
        vectors = query if same else unit(vectors)
    row, column = lists.positive
    similarities = (query[row] * vectors[column]).sum(dim=1)  # [M]
    symmetric = symmetric and bias is None and not logistic
    if symmetric:
        query = query * scale.sqrt()
        vectors = query if same else vectors * scale.sqrt()
    else:
        query = query * scale
    return NegativesOfAll.apply(query, vectors, bias, all_tiles, symmetric, logistic), None, similarities, None


class NegativesOfAll(torch.autograd.Function):
    """Log-sum-exp (or, logistic, the sum of softplus) over the negatives of all ranks, [B].

    query [B, D], whose products with the vectors are the scores; vectors [C, D] of this rank; bias: one number or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        vectors: Tensor,
        bias: Tensor | None,
        all_tiles: list[Tiles],
        symmetric: bool,
        logistic: bool,
    ) -> Tensor:
        total, moving = None, vectors
        for number, tiles in enumerate(all_tiles):
            if number:
                (moving,) = pass_on([moving])
            offset = None if bias is None else bias.to(query.dtype).expand(len(moving))
            if logistic:
                part = row_sums(query, moving, offset, tiles, softplus)
                total = part if total is None else total + part
            else:
                shift = common_shift(query, moving, 1.0, offset, cosine=False)
                scaled, offset = query * LOG2_E, moved_offset(offset, shift, LOG2_E, query.dtype)
                if shift is None:
                    part = online_lse(tile_scores(scaled, moving, offset, tiles), query.new_empty(len(query)))
                else:
                    part = as_lse(row_sums(scaled, moving, offset, tiles, torch.exp2_), shift)
                total = part if total is None else torch.logaddexp(total, part)
        assert total is not None
        ctx.save_for_backward(query, vectors, bias, total)
        ctx.all_tiles, ctx.symmetric, ctx.logistic = all_tiles, symmetric, logistic
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise InputError("sums around a ring have no second derivative: ring=false and tiled=false compute one")
        query, vectors, bias, lse = ctx.saved_tensors
        of_query, of_bias = torch.zeros_like(query), None if bias is None else torch.zeros_like(bias)
        # symmetric: the columns' gradient and log-sum-exp travel with them. Otherwise their gradient so far does
        moving = [vectors, grad, lse] if ctx.symmetric else [vectors, torch.zeros_like(vectors)]
        for tiles in ctx.all_tiles:
            offset = None if bias is None else bias.to(query.dtype).expand(len(moving[0]))
            if ctx.logistic:
                scaled, slope = query, of_softplus(grad)
            else:
                of_columns, columns = (moving[1], moving[2]) if ctx.symmetric else (None, None)
                scaled, slope = query * LOG2_E, of_lse(grad, lse, of_columns, columns, shift=None)
                offset = None if offset is None else offset * LOG2_E
            parts = tile_scores(scaled, moving[0], offset, tiles)
            wanted = (not ctx.symmetric, bias is not None)
            part, of_part, of_offset = gradients(parts, query, moving[0], slope, wanted)
            of_query += part
            if of_part is not None:
                moving[1] = moving[1] + of_part
            if of_bias is not None and of_offset is not None:
                of_bias += of_offset.sum()
            moving = pass_on(moving)
        return of_query, None if ctx.symmetric else moving[1], of_bias, None, None, None
