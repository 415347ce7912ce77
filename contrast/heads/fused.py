"""The statistics of a head's scores by fused kernels on a GPU, where they can do the head and its candidates.

B queries, C candidates, P answers, D dimensions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.candidates import Candidates
from contrast.heads.tiles import floored
from contrast.losses.similarity import similarity
from contrast.losses.softmax import Statistics
from contrast.losses.tiled.triton import Asked, LogisticSums, SoftmaxStatistics, usable


def covers(head: Any, query: Tensor, candidates: Candidates) -> bool:
    """Whether the kernels do: on a GPU they run on, without a ring, a margin on shared candidates or rules [B, C]."""
    rules = (candidates.ids, candidates.excluded_groups, candidates.log_q)
    return (
        usable(query)
        and usable(candidates.vectors)
        and len(query) > 0
        and len(candidates) > 0
        and candidates.vectors.ndim == 2
        and all(rule is None or rule.ndim == 1 for rule in rules)
        and (head.margin is None or candidates.ids is None)
        and not candidates.ring
    )


def softmax_statistics(
    head: Any, query: Tensor, candidates: Candidates, hardness: float = 0.0, correction: bool = True
) -> Statistics:
    """As `contrast.losses.softmax.statistics`, of scores that are not held."""
    with torch.autocast(query.device.type, enabled=False):
        asked = _asked(head, query, candidates, correction)
        if candidates.symmetric and asked.offset is None:
            everybody = None if candidates.vectors is query else candidates.vectors.detach()
            asked = asked._replace(both=True, vectors=everybody)
        told = Statistics(*SoftmaxStatistics.apply(*asked, hardness))
        answers = _answers(head, query, candidates, correction)
        if answers is None:
            return told
        positives = told.positives + answers.shape[1]
        return told._replace(
            lse_pos=torch.logaddexp(told.lse_pos, answers.logsumexp(dim=1)),
            mean_pos=(told.positives * told.mean_pos + answers.sum(dim=1)) / positives.clamp(min=1),
            positives=positives,
        )


def logistic_sums(
    head: Any, query: Tensor, candidates: Candidates, bias: Tensor, correction: bool = True
) -> tuple[Tensor, Tensor]:
    """As `contrast.losses.logistic.logistic_loss` of scores that are not held, plus the bias, [B]; positives [B]."""
    with torch.autocast(query.device.type, enabled=False):
        asked = _asked(head, query, candidates, correction)
        bias = bias.float()
        offset = bias.expand(len(candidates)) if asked.offset is None else asked.offset + bias
        losses, positives = LogisticSums.apply(*asked._replace(offset=offset))
        answers = _answers(head, query, candidates, correction)
        if answers is not None:
            losses = losses + F.softplus(-(answers + bias)).sum(dim=1)
            positives = positives + answers.shape[1]
        return torch.where(positives > 0, losses, 0), positives


def _asked(head: Any, query: Tensor, candidates: Candidates, correction: bool) -> Asked:
    vectors, offset = candidates.vectors, None
    if query.dtype != vectors.dtype:  # a queue in float32 under autocast
        dtype = torch.promote_types(query.dtype, vectors.dtype)
        query, vectors = query.to(dtype), vectors.to(dtype)
    if correction and candidates.log_q is not None:
        offset = -floored(candidates.log_q).float()
    return Asked(query, vectors, 1 / head.temperature().float(), offset, head.cosine, candidates)


def _answers(head: Any, query: Tensor, candidates: Candidates, correction: bool) -> Tensor | None:
    """Scores of each query's own answers, [B, P]."""
    if candidates.positives is None:
        return None
    values = similarity(query, candidates.positives, head.cosine)
    values = head.with_margin(values, query[:, None], candidates.positives) / head.temperature()
    return (
        values if not correction or candidates.positives_log_q is None else values - floored(candidates.positives_log_q)
    )
