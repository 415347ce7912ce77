"""The log-sum-exp over candidates of several ranks: gathered, where queries are the candidates, or passed in a ring.

B queries of this rank, W ranks, C candidates of a rank, D dimensions. Every rank ends with the whole gradient of its
own rows, that of all ranks' losses.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from contrast.candidates import Candidates
from contrast.distributed import gather, rank, world_size
from contrast.errors import InputError
from contrast.losses.tiled.cpu import block_lse, both_roles, common_shift, gradients, of_lse, of_softplus, row_sums
from contrast.losses.tiled.pairs import exceptions, positive_pairs
from contrast.losses.tiled.plan import Plan


class RankedLse(torch.autograd.Function):
    """As `SymmetricLse`, the vectors those of all ranks: every rank computes its own rows against all columns.

    Backward gathers one lse and one gradient for each query, no gradients of vectors: by symmetry a rank can compute
    what the other ranks' losses send back to its rows.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, vectors: Tensor, shift: float | None, plan: Plan) -> Tensor:
        """query [B, D] of this rank; vectors [W B, D], those of all ranks in order, without gradient."""
        lse = block_lse(query, vectors, None, plan, shift)
        ctx.save_for_backward(query, vectors, lse)
        ctx.shift, ctx.plan = shift, plan
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, vectors, lse = ctx.saved_tensors
        slope = both_roles(grad, lse, gather(grad), gather(lse), ctx.shift)
        found, _, _ = gradients(query, vectors, None, ctx.plan, slope, (True, False, False))
        return found, None, None, None


def ring(tensors: list[Tensor]) -> list[Tensor]:
    """This rank's tensors go to the next rank, those of the rank before come in; shapes are the same everywhere."""
    after, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    sent = [tensor.contiguous() for tensor in tensors]
    received = [torch.empty_like(tensor) for tensor in sent]
    operations = [dist.P2POp(dist.isend, tensor, after) for tensor in sent]
    operations += [dist.P2POp(dist.irecv, tensor, before) for tensor in received]
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    return received


class Blocks:
    """The candidates of one rank after another as this rank's queries see them; `rules` are those of this rank alone.

    Positives have to be on the rank of their query: InputError otherwise.
    """

    def __init__(self, rules: Candidates) -> None:
        self.plans: list[Plan] = []
        self.negatives = torch.zeros_like(rules.query_ids)  # [B] of all ranks
        ids, groups = rules.ids, rules.excluded_groups
        for step in range(world_size()):
            own = rules if step == 0 else replace(rules, ids=ids, excluded_groups=groups, self_index=None)
            self.plans.append(self._plan(own, step))
            moved = iter(ring([each for each in (ids, groups) if each is not None]))
            ids = None if ids is None else next(moved)
            groups = None if groups is None else next(moved)

    def _plan(self, rules: Candidates, step: int) -> Plan:
        most = len(rules) * len(rules.query_ids)
        positive = positive_pairs(rules, most)
        assert positive is not None
        if step and len(positive.row):
            raise InputError(
                f"{len(positive.row)} positives are on other ranks than their query, where a ring does not find them: "
                "ring=false gathers the candidates"
            )
        others = exceptions(rules, positive, most)
        assert others is not None
        self.negatives += len(rules) - torch.bincount(others.row, minlength=len(rules.query_ids))
        return Plan(len(rules.query_ids), len(rules), others)


class RingSum(torch.autograd.Function):
    """Log-sum-exp (or, logistic, the sum of softplus) over the negatives of all ranks, [B], vectors passed round."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, vectors: Tensor, offset: Tensor | None, blocks: Blocks, symmetric: bool, logistic: bool
    ) -> Tensor:
        """query [B, D]; vectors [C, D] and offset (one number for all, or None) of this rank."""
        total, moving = None, vectors
        for plan in blocks.plans:
            if logistic:
                part = row_sums(query, moving, _spread(offset, moving), plan, F.softplus)
                total = part if total is None else total + part
            else:
                each = _spread(offset, moving)
                part = block_lse(query, moving, each, plan, common_shift(query, moving, each))
                total = part if total is None else torch.logaddexp(total, part)
            (moving,) = ring([moving])
        assert total is not None
        ctx.save_for_backward(query, vectors, offset, total)
        ctx.blocks, ctx.symmetric, ctx.logistic = blocks, symmetric, logistic
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, vectors, offset, lse = ctx.saved_tensors
        of_query, of_offset = torch.zeros_like(query), None if offset is None else torch.zeros_like(offset)
        # both roles: the columns' lse and gradient travel with them; else what has been found of their gradient does
        moving = [vectors, grad, lse] if ctx.symmetric else [vectors, torch.zeros_like(vectors)]
        for plan in ctx.blocks.plans:
            if ctx.symmetric:
                slope = both_roles(grad, lse, moving[1], moving[2], None)
            else:
                slope = of_softplus(grad) if ctx.logistic else of_lse(grad, lse)
            wanted = (True, not ctx.symmetric, offset is not None)
            asked, answered, moved = gradients(query, moving[0], _spread(offset, moving[0]), plan, slope, wanted)
            assert asked is not None
            of_query += asked
            if answered is not None:
                moving[1] = moving[1] + answered
            if of_offset is not None and moved is not None:
                of_offset += moved.sum()
            moving = ring(moving)
        of_vectors = None if ctx.symmetric else moving[1]
        return of_query, of_vectors, of_offset, None, None, None


def _spread(offset: Tensor | None, vectors: Tensor) -> Tensor | None:
    return None if offset is None else offset.expand(len(vectors))
