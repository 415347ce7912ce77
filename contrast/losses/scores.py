"""Scores as one matrix, with their masks: the definition that every faster way has to agree with.

B queries, C shared candidates, P positives of each query's own, D dimensions, W ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.distributed import gather, rank
from contrast.losses.plan import MIN_SCORES_BLOCKS, Scoring
from contrast.losses.similarity import at_least_float32, similarity, unit, with_margin

WITH_GRADIENT = ("vectors", "log_q", "positives", "positives_log_q")  # fields of Candidates that may need a gradient


class Scores(NamedTuple):
    """Scores of all candidates, a query's own positives first, and their masks, each [B, P + C]."""

    values: Tensor
    positive: Tensor
    valid: Tensor


def score_matrix(query: Tensor, candidates: Candidates, scoring: Scoring) -> Scores:
    """margin(similarity) / temperature - log_q of every candidate, float32 or float64; the margin is for positives."""
    positive, valid = candidates.masks()
    if scoring.cosine and candidates.normalized:
        values = similarity(unit(at_least_float32(query)), candidates.vectors, cosine=False)  # [B, C]
    else:
        values = similarity(query, candidates.vectors, scoring.cosine)
    if scoring.margin is not None and candidates.ids is not None:  # without ids none of them is positive
        values = torch.where(
            positive, with_margin(scoring.margin, scoring.cosine, values, query[:, None], candidates.vectors), values
        )
    values = values / scoring.temperature
    if scoring.correction and candidates.log_q is not None:
        values = values - candidates.log_q
    own = own_positive_scores(query, candidates, scoring)
    if own is not None:
        all_of_them = torch.ones_like(own, dtype=torch.bool)
        values = torch.cat([own, values], dim=1)  # [B, P + C]
        positive = torch.cat([all_of_them, positive], dim=1)
        valid = torch.cat([all_of_them, valid], dim=1)
    return Scores(values, positive, valid)


def own_positive_scores(query: Tensor, candidates: Candidates, scoring: Scoring) -> Tensor | None:
    """Scores of each query's own positives, [B, P], or None where there are none."""
    if candidates.positives is None:
        return None
    values = similarity(query, candidates.positives, scoring.cosine)
    if scoring.margin is not None:
        values = with_margin(scoring.margin, scoring.cosine, values, query[:, None], candidates.positives)
    values = values / scoring.temperature
    log_q = candidates.positives_log_q
    return values - log_q if scoring.correction and log_q is not None else values


def positive_similarity(query: Tensor, candidates: Candidates, scoring: Scoring) -> Tensor:
    """Mean similarity of every query to its positives, [B], without margin and correction; 0 without a positive."""
    plain = scoring._replace(temperature=scoring.temperature.new_ones(()), margin=None, correction=False)
    values, positive, _ = score_matrix(query, candidates, plain)
    return masked_mean(values, positive)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the `values` [B, C] of each row where `mask` [B, C] is true, [B]; 0 where it is true nowhere."""
    return values.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def in_blocks(
    value: Callable[[Tensor, Candidates], Sequence[Tensor]],
    query: Tensor,
    candidates: Candidates,
    used: Sequence[Tensor],
    cosine: bool,
    at_once: bool = False,
) -> tuple[Tensor, ...]:
    """`value` of one block of queries after another, with its outputs [b] joined to [B].

    Only the scores of one block are in memory at a time. A block has the candidates of all ranks, around a ring too.

    value    any differentiable function of a query's own scores. Each block is computed again in the backward pass
    used     other tensors that `value` depends on and that need a gradient, such as a temperature
    cosine   whether `value` uses cosines: shared vectors are then divided by their lengths once
    at_once  all queries are one block, which autograd keeps for the backward pass
    """
    candidates = gathered(candidates)
    if at_once:
        return tuple(value(query, candidates))
    if cosine and candidates.vectors.ndim == 2:  # once, not in every block
        with torch.autocast(query.device.type, enabled=False):
            candidates = replace(candidates, vectors=unit(at_least_float32(candidates.vectors)), normalized=True)
    fields = {name: getattr(candidates, name) for name in WITH_GRADIENT}
    return Blocks.apply(value, candidates, query, *fields.values(), *used)


class Blocks(torch.autograd.Function):
    """`in_blocks`, of value, candidates, query, the candidates' tensors that may have a gradient, and `used`."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Callable[[Tensor, Candidates], Sequence[Tensor]],
        candidates: Candidates,
        query: Tensor,
        *others: Tensor | None,
    ) -> tuple[Tensor, ...]:
        rows = max(1, MIN_SCORES_BLOCKS // max(1, len(candidates)))
        ctx.parts = [slice(i, i + rows) for i in range(0, max(1, len(query)), rows)]
        outputs: tuple[Tensor, ...] = ()
        for part in ctx.parts:
            block = value(query[part], candidates.tile(part, slice(None)))
            # copied at once: small tensors that outlive a block would fragment the memory that the block frees
            outputs = outputs or tuple(x.new_empty(len(query)) for x in block)
            for output, x in zip(outputs, block, strict=True):
                output[part] = x
        ctx.save_for_backward(query, *others)
        ctx.value, ctx.candidates = value, candidates
        ctx.mark_non_differentiable(*(each for each in outputs if not each.is_floating_point()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, *others = ctx.saved_tensors
        own, used = others[: len(WITH_GRADIENT)], others[len(WITH_GRADIENT) :]
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # create_graph=True: one matrix, whose gradients can be differentiated again
            q, *own = (None if x is None else x.view_as(x) for x in (query, *own))
            outputs = ctx.value(q, replace(ctx.candidates, **dict(zip(WITH_GRADIENT, own, strict=True))))
            out, of_out = zip(*((x, g) for x, g in zip(outputs, grads, strict=True) if x.requires_grad), strict=True)
            inputs = [x for x, need in zip((q, *own, *used), needed, strict=True) if need]
            result = iter(torch.autograd.grad(out, inputs, of_out, create_graph=True, allow_unused=True))
            return None, None, *(next(result) if need else None for need in needed)
        totals = [torch.zeros_like(x) if need else None for x, need in zip((query, *others), needed, strict=True)]
        whole = replace(ctx.candidates, **dict(zip(WITH_GRADIENT, map(_leaf, own), strict=True)))
        with torch.enable_grad():
            for part in ctx.parts:
                q, block = _leaf(query[part]), whole.tile(part, slice(None))
                outputs = [(x, g[part]) for x, g in zip(ctx.value(q, block), grads, strict=True) if x.requires_grad]
                leaves = [q, *(getattr(whole, name) for name in WITH_GRADIENT), *used]
                inputs = [x for x, need in zip(leaves, needed, strict=True) if need]
                if not outputs:
                    continue
                out, of_out = zip(*outputs, strict=True)
                result = iter(torch.autograd.grad(out, inputs, of_out, allow_unused=True))
                for n, total in enumerate(totals):
                    grad = next(result) if total is not None else None
                    if total is not None and grad is not None:
                        (total[part] if n == 0 else total).add_(grad)
        return None, None, *totals


def _leaf(x: Tensor | None) -> Tensor | None:
    return x.detach().requires_grad_() if x is not None and x.is_floating_point() else x


def gathered(candidates: Candidates) -> Candidates:
    """The candidates of all ranks, [W C, D], in place of a ring's part."""
    if not candidates.ring:
        return candidates
    offset, index = rank() * len(candidates), candidates.self_index
    parts = {name: getattr(candidates, name) for name in ("vectors", "ids", "log_q", "excluded_groups")}
    everything: dict[str, Any] = {name: gather(part) for name, part in parts.items() if part is not None}
    own = None if index is None else torch.where(index >= 0, index + offset, index)
    return replace(candidates, **everything, self_index=own, ring=False)
