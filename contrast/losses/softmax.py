"""The softmax loss on scores: InfoNCE and its whole family, one value per query.

B queries, C candidates. Scores are already divided by the temperature; they are not probabilities.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Statistics(NamedTuple):
    """What the softmax losses need of a query's scores, each [B]; a query without positives has mean_pos 0."""

    lse_neg: Tensor  # log-sum-exp over the negatives, the dtype's lowest number where there are none
    lse_pos: Tensor  # over the positives, likewise
    mean_pos: Tensor
    positives: Tensor  # how many, int64
    negatives: Tensor
    mean_valid: Tensor | None = None  # over all that count; for label smoothing


def statistics(
    scores: Tensor, positive: Tensor, valid: Tensor, hardness: float = 0.0, smoothed: bool = False
) -> Statistics:
    """Of scores [B, C] with masks [B, C] bool, every positive valid.

    smoothed  mean_valid is wanted
    hardness  beta of Robinson et al. 2021, eq. 4 and appendix: every negative counts in proportion to
              exp(beta s) / mean exp(beta s), so that lse_neg = lse((1 + beta) s) - lse(beta s) + log N
    """
    lowest = torch.finfo(scores.dtype).min  # not -inf: a row without negatives keeps finite gradients
    negative = valid & ~positive
    positives, negatives = positive.sum(dim=1), negative.sum(dim=1)  # [B]
    lse_neg = _lse(scores, negative)
    if hardness:
        log_n = negatives.to(scores.dtype).log()
        hard = _lse((1 + hardness) * scores, negative) - _lse(hardness * scores, negative) + log_n
        lse_neg = torch.where(negatives > 0, hard, lowest)
    return Statistics(
        lse_neg=lse_neg,
        lse_pos=_lse(scores, positive),
        mean_pos=_mean(scores, positive, positives),
        positives=positives,
        negatives=negatives,
        mean_valid=_mean(scores, valid, positives + negatives) if smoothed else None,
    )


def softmax_loss(
    scores: Tensor,
    positive: Tensor,
    valid: Tensor,
    decoupled: bool = False,
    hardness: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Log-sum-exp over the valid candidates minus the mean over the positive ones.

    scores [B, C] float; positive, valid [B, C] bool, every positive valid. Returns [B]; 0 for a query without a
    positive, whose gradient is 0 too. The options are those of `from_statistics` and `statistics`.

    With one positive this is InfoNCE (van den Oord et al. 2018, eq. 4), NT-Xent on both views (Chen et al. 2020,
    eq. 1) and cross entropy over a whole table; with several it is the outer sum of SupCon (Khosla et al. 2020,
    eq. 2).
    """
    stats = statistics(scores, positive, valid, hardness, smoothed=label_smoothing > 0)
    return from_statistics(stats, decoupled, label_smoothing)


def from_statistics(stats: Statistics, decoupled: bool = False, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each query, [B].

    decoupled        the positives are left out of the denominator: lse_neg - mean_pos (Yeh et al. 2022, eq. 6)
    label_smoothing  share of the target that is spread over all that count (Szegedy et al. 2016, section 7)

    Written from the log-sum-exps of the negatives and of the positives,

        loss = softplus(lse_neg - lse_pos) + lse_pos - mean_pos,

    so that the small loss of a solved query is not the difference of two large numbers. With one positive the last two
    are equal and left out: their gradients, 1 and -1, would swallow that of the softplus.
    """
    if decoupled:
        loss = torch.where(stats.negatives > 0, stats.lse_neg - stats.mean_pos, 0)
    else:
        spread = torch.where(stats.positives > 1, stats.lse_pos - stats.mean_pos, 0)
        loss = F.softplus(stats.lse_neg - stats.lse_pos) + spread
    if label_smoothing:
        assert stats.mean_valid is not None
        loss = loss + label_smoothing * (stats.mean_pos - stats.mean_valid)
    return torch.where(stats.positives > 0, loss, 0)


def debiased(stats: Statistics, class_prior: float, lowest_score: Tensor) -> Statistics:
    """The negatives without the share of them that are positives in truth (Chuang et al. 2020, eqs. 7 and 8).

    class_prior   tau+, the probability that a negative is of its query's class
    lowest_score  the score of opposite vectors, -1 / temperature

    The sum over N negatives becomes max((sum - N tau+ pos) / (1 - tau+), N exp(lowest_score)), in logarithms here;
    pos is the mean of exp(score) over the positives.
    """
    count = stats.negatives.clamp(min=1).to(stats.lse_neg.dtype).log()  # log N
    mean_exp_pos = stats.lse_pos - stats.positives.clamp(min=1).to(count.dtype).log()  # log pos
    false = count + math.log(class_prior) + mean_exp_pos  # log(N tau+ pos)
    some = false < stats.lse_neg
    gap = torch.where(some, false - stats.lse_neg, -1.0)
    rest = stats.lse_neg + torch.log(-torch.expm1(gap)) - math.log1p(-class_prior)
    floor = count + lowest_score
    lse_neg = torch.where(some, torch.maximum(rest, floor), floor)
    return stats._replace(lse_neg=torch.where(stats.negatives > 0, lse_neg, stats.lse_neg))


def _lse(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).logsumexp(dim=1)  # [B, C] -> [B]


def _mean(scores: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    return scores.masked_fill(~mask, 0).sum(dim=1) / count.clamp(min=1)  # [B, C] -> [B]
