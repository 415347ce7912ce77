"""The softmax loss: InfoNCE and its whole family, one value per query.

B queries, C candidates. Scores are already divided by the temperature; they are not probabilities.

`softmax_loss` is the definition, on a matrix of scores with its masks. `softmax_losses` computes the same by the
fastest method: `statistics` is what the loss needs of the scores, and `loss_of` is the loss as a function of it.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.candidates import Candidates
from contrast.distributed import log_mean_exp_over_ranks, mean_over_ranks
from contrast.losses.plan import MAX_SCORES_CROSS_ENTROPY, PairLists, Plan, Scoring, plan
from contrast.losses.scores import in_blocks, own_positive_scores, positive_similarity, score_matrix
from contrast.losses.similarity import similarity as score_similarity
from contrast.losses.tiled.cpu import list_sums
from contrast.losses.tiled.fused import fused_statistics
from contrast.losses.tiled.masked import masked_statistics
from contrast.losses.tiled.ranks import ring_lists


class Statistics(NamedTuple):
    """What the softmax losses need of a query's scores, each [B]; without positives `mean_pos` is 0."""

    lse_neg: Tensor  # log-sum-exp over the negatives, the dtype's lowest number where there are none
    lse_pos: Tensor  # over the positives, likewise
    mean_pos: Tensor
    num_positives: Tensor  # int64
    num_negatives: Tensor
    mean_valid: Tensor | None = None  # over all that count, if requested: for label smoothing
    similarity: Tensor | None = None  # mean similarity of the positives, without margin and log_q, if requested


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
    positive, whose gradient is 0 too. The options are those of `loss_of` and `matrix_statistics`.

    With one positive this is InfoNCE (van den Oord et al. 2018, eq. 4), NT-Xent on both views (Chen et al. 2020,
    eq. 1) and cross entropy over a whole table; with several it is the outer sum of SupCon (Khosla et al. 2020,
    eq. 2).
    """
    stats = matrix_statistics(scores, positive, valid, hardness, mean_valid=label_smoothing > 0)
    return loss_of(stats, decoupled, label_smoothing)


def softmax_losses(
    query: Tensor,
    candidates: Candidates,
    scoring: Scoring,
    decoupled: bool = False,
    positive_sigma: float | None = None,
    class_prior: float = 0.0,
    hardness: float = 0.0,
    label_smoothing: float = 0.0,
    lists: PairLists | None = None,
) -> tuple[Tensor, Tensor]:
    """Losses of `query` [B, D], and which queries count: those with a positive. Both [B].

    positive_sigma  sigma of `positive_weighting`, or None; class_prior: as in `debiased`; the others as in `loss_of`
                    and `statistics`
    """
    weighted = positive_sigma is not None
    stats = statistics(query, candidates, scoring, hardness, label_smoothing > 0, weighted, lists)
    if class_prior:
        stats = debiased(stats, class_prior, -1 / scoring.temperature)
    loss = loss_of(stats, decoupled, label_smoothing)
    if positive_sigma is not None:
        loss = loss + positive_weighting(stats, positive_sigma)
    return loss, stats.num_positives > 0


def loss_of(stats: Statistics, decoupled: bool = False, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each query, [B].

    decoupled        the positives are left out of the denominator: lse_neg - mean_pos (Yeh et al. 2022, eq. 6)
    label_smoothing  share of the target that is spread over all that count (Szegedy et al. 2016, section 7)

    It is written from the log-sum-exps of the negatives and of the positives,

        loss = softplus(lse_neg - lse_pos) + lse_pos - mean_pos,

    so that the small loss of a solved query is not the difference of two large numbers. With one positive the last two
    are equal and left out: their gradients, 1 and -1, would swallow that of the softplus.
    """
    if decoupled:
        loss = torch.where(stats.num_negatives > 0, stats.lse_neg - stats.mean_pos, 0)
    else:
        loss = F.softplus(stats.lse_neg - stats.lse_pos)
        if stats.lse_pos is stats.mean_pos and not label_smoothing:  # every query has exactly one positive
            return loss
        loss = loss + torch.where(stats.num_positives > 1, stats.lse_pos - stats.mean_pos, 0)
    if label_smoothing:
        assert stats.mean_valid is not None
        loss = loss + label_smoothing * (stats.mean_pos - stats.mean_valid)
    return torch.where(stats.num_positives > 0, loss, 0)


def debiased(stats: Statistics, class_prior: float, lowest_score: Tensor) -> Statistics:
    """Removes from the negatives the share that are in truth positives (Chuang et al. 2020, eqs. 7 and 8).

    class_prior   tau+, the probability that a negative is of its query's class
    lowest_score  the score of opposite vectors, -1 / temperature

    The sum over N negatives becomes max((sum - N tau+ pos) / (1 - tau+), N exp(lowest_score)), in logarithms here;
    pos is the mean of exp(score) over the positives.
    """
    count = stats.num_negatives.clamp(min=1).to(stats.lse_neg.dtype).log()  # log N
    mean_exp_pos = stats.lse_pos - stats.num_positives.clamp(min=1).to(count.dtype).log()  # log pos
    false = count + math.log(class_prior) + mean_exp_pos  # log(N tau+ pos)
    some = false < stats.lse_neg
    gap = torch.where(some, false - stats.lse_neg, -1.0)
    rest = stats.lse_neg + torch.log(-torch.expm1(gap)) - math.log1p(-class_prior)
    floor = count + lowest_score
    lse_neg = torch.where(some, torch.maximum(rest, floor), floor)
    return stats._replace(lse_neg=torch.where(stats.num_negatives > 0, lse_neg, stats.lse_neg))


def positive_weighting(stats: Statistics, sigma: float) -> Tensor:
    """What DCLW (Yeh et al. 2022, eq. 7) adds to the decoupled loss, [B]: (1 - w) mean_pos, w a constant.

    w = 2 - exp(cos / sigma) / mean exp(cos / sigma), the mean over the counted queries of all ranks.
    """
    assert stats.similarity is not None
    counted = stats.num_positives > 0
    raised = (stats.similarity.detach() / sigma).masked_fill(~counted, torch.finfo(stats.mean_pos.dtype).min)  # [B]
    log_total = log_mean_exp_over_ranks(raised.logsumexp(dim=0))  # log of the mean over ranks of the sum
    count = mean_over_ranks(counted.sum().to(raised.dtype))
    weight = 2 - count * (raised - log_total).exp()
    in_loss = counted & (stats.num_negatives > 0)  # where the loss holds mean_pos
    return torch.where(in_loss, (1 - weight) * stats.mean_pos, 0)


def statistics(
    query: Tensor,
    candidates: Candidates,
    scoring: Scoring,
    hardness: float = 0.0,
    mean_valid: bool = False,
    similarity: bool = False,
    lists: PairLists | None = None,
) -> Statistics:
    """The statistics of the scores of `query` [B, D], in the way that `contrast.losses.plan.plan` chooses.

    hardness    beta of `matrix_statistics`
    mean_valid, similarity  whether these are requested
    lists       the candidates' rules as lists of pairs, if the caller has them already
    """
    if lists is not None:
        how = Plan("lists", lists)
    else:
        # these two methods return the statistics of scores alone, and no mean over all that count
        fused = not mean_valid and (not similarity or _scores_are_similarities(candidates, scoring))
        how = plan(query, candidates, scoring, lists=not mean_valid, masks=fused and not hardness, triton=fused)
    if how.lists is not None:
        return _of_lists(query, candidates, scoring, how.lists, hardness, similarity)
    if how.method in ("triton", "masks"):
        if how.method == "triton":
            stats = Statistics(*fused_statistics(query, candidates, scoring, hardness))
        else:
            stats = Statistics(*masked_statistics(query, candidates, scoring))
        stats = _with_own(stats, query, candidates, scoring)
        return stats._replace(similarity=stats.mean_pos * scoring.temperature) if similarity else stats

    def of_rows(query: Tensor, candidates: Candidates) -> list[Tensor]:
        stats = matrix_statistics(*score_matrix(query, candidates, scoring), hardness, mean_valid)
        if similarity:
            stats = stats._replace(similarity=positive_similarity(query, candidates, scoring))
        return [x for x in stats if x is not None]

    out = in_blocks(of_rows, query, candidates, [scoring.temperature], scoring.cosine, how.method == "matrix")
    lse_neg, lse_pos, mean_pos, num_positives, num_negatives, *more = out
    return Statistics(
        lse_neg, lse_pos, mean_pos, num_positives, num_negatives,
        more[0] if mean_valid else None, more[-1] if similarity else None,
    )  # fmt: skip


def matrix_statistics(
    scores: Tensor, positive: Tensor, valid: Tensor, hardness: float = 0.0, mean_valid: bool = False
) -> Statistics:
    """Of scores [B, C] with masks [B, C] bool, every positive valid.

    mean_valid  whether it is requested
    hardness    beta of Robinson et al. 2021, eq. 4 and appendix: every negative counts in proportion to
                exp(beta s) / mean exp(beta s), so that lse_neg = lse((1 + beta) s) - lse(beta s) + log N
    """
    negative = valid & ~positive
    num_positives, num_negatives = positive.sum(dim=1), negative.sum(dim=1)  # [B]
    lse_neg = _lse((1 + hardness) * scores, negative)
    if hardness:
        lse_neg = _hardened(lse_neg, _lse(hardness * scores, negative), num_negatives)
    return Statistics(
        lse_neg=lse_neg,
        lse_pos=_lse(scores, positive),
        mean_pos=_mean(scores, positive, num_positives),
        num_positives=num_positives,
        num_negatives=num_negatives,
        mean_valid=_mean(scores, valid, num_positives + num_negatives) if mean_valid else None,
    )


def _of_lists(
    query: Tensor, candidates: Candidates, scoring: Scoring, lists: PairLists, hardness: float, similarity: bool
) -> Statistics:
    """From tiles; the positives are scored by themselves."""
    lists = ring_lists(candidates, lists) if candidates.ring else lists
    sums = list_sums(query, candidates, scoring, lists, 1 + hardness)
    lse_neg = sums.negatives
    if hardness:
        beta = list_sums(query, candidates, scoring, lists, hardness).negatives
        lse_neg = _hardened(lse_neg, beta, lists.num_negatives)
    assert sums.listed is not None
    own = sums.own_scores
    lse_pos, mean_pos = of_positives(sums.listed, own, lists)
    return Statistics(
        lse_neg,
        lse_pos,
        mean_pos,
        lists.num_positives if own is None else lists.num_positives + own.shape[1],
        lists.num_negatives,
        similarity=of_positives(sums.similarities, sums.own, lists)[1] if similarity else None,
    )


def pair_losses(
    query: Tensor,
    candidates: Candidates,
    scoring: Scoring,
    lists: PairLists,
    reduction: Literal["mean", "none"] = "none",
    two_way: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """InfoNCE of queries with one positive each, without log_q and margin, [B] or the mean; no other statistics.

    two_way  the losses of candidates against queries, too, from one pass over the scores: CLIP, where candidate i is
             the positive of query i
    """
    if lists.tiles.queries * lists.tiles.candidates <= MAX_SCORES_CROSS_ENTROPY:
        scores = score_similarity(query, candidates.vectors, scoring.cosine) / scoring.temperature
        if candidates.symmetric:  # the queries are the candidates, and none is its own negative
            scores.fill_diagonal_(-torch.inf)
        target = lists.positive.column
        to_candidates = F.cross_entropy(scores, target, reduction=reduction)  # a separate mean would be a node more
        return to_candidates, F.cross_entropy(scores.T, target, reduction=reduction) if two_way else None
    sums = list_sums(query, candidates, scoring, lists, columns=two_way, loss=True)
    if reduction == "none":
        return sums.negatives, sums.columns
    return sums.negatives.mean(), None if sums.columns is None else sums.columns.mean()


def label_losses(query: Tensor, candidates: Candidates, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """SupCon without log_q, margin and own positives, from one matrix: losses, and which queries count, both [B].

    As exact as a cross entropy: its absolute error is that of float32, where `loss_of` keeps the relative one.
    """
    scores = score_similarity(query, candidates.vectors, scoring.cosine) / scoring.temperature  # [B, C]
    positive, valid = candidates.masks()
    log_p = scores.masked_fill(~valid, torch.finfo(scores.dtype).min).log_softmax(dim=1)
    number = positive.sum(dim=1)
    return -_mean(log_p, positive, number), number > 0


def of_positives(listed: Tensor, own: Tensor | None, lists: PairLists) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and mean over the positives of every query, each [B]; the dtype's lowest number and 0 without any.

    listed [M], scores of the listed pairs; own [B, P], those of each query's own positives. Where every query has
    exactly one positive, both are the same tensor.
    """
    if own is None and lists.one_positive:
        return listed, listed
    if own is not None and not len(listed):
        only = own[:, 0]
        return (only, only) if own.shape[1] == 1 else (own.logsumexp(dim=1), own.mean(dim=1))
    count, row = lists.num_positives, lists.positive.row
    mean = listed.new_zeros(len(count)).index_add(0, row, listed) / count.clamp(min=1)
    lowest = listed.new_full((len(count),), torch.finfo(listed.dtype).min)
    highest = lowest.scatter_reduce(0, row, listed.detach(), "amax")
    total = listed.new_zeros(len(count)).index_add(0, row, (listed - highest[row]).exp())
    lse = torch.where(count > 0, highest + torch.where(count > 0, total, 1).log(), lowest)
    return (lse, mean) if own is None else _joined(lse, mean, count, own)


def _scores_are_similarities(candidates: Candidates, scoring: Scoring) -> bool:
    """Whether the score of a positive is its similarity over the temperature: no margin, no log_q."""
    return scoring.margin is None and candidates.log_q is None and candidates.positives_log_q is None


def _with_own(stats: Statistics, query: Tensor, candidates: Candidates, scoring: Scoring) -> Statistics:
    """Statistics of the shared candidates, with each query's own positives added."""
    own = own_positive_scores(query, candidates, scoring)
    if own is None:
        return stats
    lse_pos, mean_pos = _joined(stats.lse_pos, stats.mean_pos, stats.num_positives, own)
    return stats._replace(lse_pos=lse_pos, mean_pos=mean_pos, num_positives=stats.num_positives + own.shape[1])


def _joined(lse: Tensor, mean: Tensor, count: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and mean over `count` scores and those of `own` [B, P]."""
    mean = (count * mean + own.sum(dim=1)) / (count + own.shape[1])
    return torch.logaddexp(lse, own.logsumexp(dim=1)), mean


def _hardened(lse_raised: Tensor, lse_weights: Tensor, num_negatives: Tensor) -> Tensor:
    """lse((1 + beta) s) - lse(beta s) + log N, the dtype's lowest number without negatives."""
    log_n = num_negatives.clamp(min=1).to(lse_raised.dtype).log()
    return torch.where(num_negatives > 0, lse_raised - lse_weights + log_n, torch.finfo(lse_raised.dtype).min)


def _lse(scores: Tensor, mask: Tensor) -> Tensor:
    # the lowest number, not -inf: a row without any keeps finite gradients
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).logsumexp(dim=1)  # [B, C] -> [B]


def _mean(scores: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    return scores.masked_fill(~mask, 0).sum(dim=1) / count.clamp(min=1)  # [B, C] -> [B]
