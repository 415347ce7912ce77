"""Scores as one matrix, with their masks: the definition that every faster way has to agree with.

B queries, C shared candidates, P positives of each query's own, D dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from contrast.candidates import Candidates
from contrast.distributed import gather, rank
from contrast.losses.plan import MIN_SCORES_BLOCKS, Scoring
from contrast.losses.similarity import LOWEST_LOG_Q, similarity, with_margin


class Scores(NamedTuple):
    """Scores of all candidates, a query's own positives first, and their masks, each [B, P + C]."""

    values: Tensor
    positive: Tensor
    valid: Tensor


def score_matrix(query: Tensor, candidates: Candidates, scoring: Scoring) -> Scores:
    """margin(similarity) / temperature - log_q of every candidate, float32 or float64; the margin is for positives."""
    positive, valid = candidates.masks()
    values = similarity(query, candidates.vectors, scoring.cosine)  # [B, C]
    if scoring.margin is not None and candidates.ids is not None:  # without ids none of them is positive
        values = torch.where(
            positive, with_margin(scoring.margin, scoring.cosine, values, query[:, None], candidates.vectors), values
        )
    values = values / scoring.temperature
    if scoring.correction and candidates.log_q is not None:
        values = values - candidates.log_q.clamp(min=LOWEST_LOG_Q)
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
    if not scoring.correction or candidates.positives_log_q is None:
        return values
    return values - candidates.positives_log_q.clamp(min=LOWEST_LOG_Q)


def positive_similarity(query: Tensor, candidates: Candidates, scoring: Scoring) -> Tensor:
    """Mean similarity of every query to its positives, [B], without margin and correction; 0 without a positive."""
    plain = scoring._replace(temperature=scoring.temperature.new_ones(()), margin=None, correction=False)
    values, positive, _ = score_matrix(query, candidates, plain)
    return values.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)


def in_blocks(
    value: Callable[[Tensor, Candidates], Sequence[Tensor]], query: Tensor, candidates: Candidates
) -> list[Tensor]:
    """`value` of blocks of queries, its outputs [b] joined to [B]: memory for the scores of one block at a time.

    Each block is computed again in the backward pass. So any differentiable `value` will do, and the parameters that
    it uses get their gradients.
    """
    rows = max(1, MIN_SCORES_BLOCKS // max(1, len(candidates)))
    blocks = [
        checkpoint(value, query[i : i + rows], candidates.tile(slice(i, i + rows), slice(None)), use_reentrant=False)
        for i in range(0, max(1, len(query)), rows)
    ]
    return [torch.cat(part) for part in zip(*blocks, strict=True)]


def gathered(candidates: Candidates) -> Candidates:
    """The candidates of all ranks in place of a ring's part, for losses that need a whole row of scores."""
    if not candidates.ring:
        return candidates
    offset, index = rank() * len(candidates), candidates.self_index
    return replace(
        candidates,
        vectors=gather(candidates.vectors),
        ids=None if candidates.ids is None else gather(candidates.ids),
        excluded_groups=None if candidates.excluded_groups is None else gather(candidates.excluded_groups),
        self_index=None if index is None else torch.where(index >= 0, index + offset, index),
        ring=False,
    )
