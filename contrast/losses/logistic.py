"""The logistic loss: NCE and its whole family, one value per query.

B queries, C candidates. A score is the log odds of "data, not noise"; it is not a probability.

`logistic_loss` is the definition, on a matrix of scores with its masks. `logistic_losses` computes the same by the
fastest method.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.candidates import Candidates
from contrast.losses.plan import PairLists, Plan, Scoring, plan
from contrast.losses.scores import in_blocks, own_positive_scores, score_matrix
from contrast.losses.similarity import similarity
from contrast.losses.softmax import statistics
from contrast.losses.tiled.cpu import list_sums
from contrast.losses.tiled.fused import fused_logistic
from contrast.losses.tiled.masked import masked_logistic
from contrast.losses.tiled.ranks import ring_lists


def logistic_loss(scores: Tensor, positive: Tensor, valid: Tensor, num_noise: float | None = None) -> Tensor:
    """Binary cross entropy of every valid candidate, summed: softplus(-s) of positives, softplus(s) of the rest.

    scores [B, C] float; positive, valid [B, C] bool, every positive valid. Returns [B]; 0 for a query without a
    positive, whose gradient is 0 too. With `num_noise`, the rest of a query together weighs as much as `num_noise`
    candidates.

    With scores s - log(k q) this is NCE (Gutmann and Hyvarinen 2010, eq. 3; Mnih and Teh 2012, eq. 9), without the
    correction negative sampling (Mikolov et al. 2013, eq. 4), over all pairs of a batch SigLIP (Zhai et al. 2023,
    algorithm 1), over the turns of a path hierarchical softmax (Morin and Bengio 2005).
    """
    each = F.softplus(torch.where(positive, -scores, scores)).masked_fill(~valid, 0)  # [B, C]
    if num_noise is not None:
        is_noise = valid & ~positive
        weight = num_noise / is_noise.sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]
        each = torch.where(is_noise, each * weight, each)
    return torch.where(positive.any(dim=1), each.sum(dim=1), 0)


def logistic_losses(
    query: Tensor,
    candidates: Candidates,
    scoring: Scoring,
    bias: Tensor,
    num_noise: float | None = None,
    lists: PairLists | None = None,
) -> tuple[Tensor, Tensor]:
    """Losses of `query` [B, D], and which queries count: those with a positive. Both [B].

    bias       scalar tensor that is added to every score
    num_noise  k: the noise of a query weighs as much as k draws, and log_q, which is log(C q), becomes log(k q)
    lists      the candidates' rules as lists of pairs, if the caller has them already
    """
    how = Plan("lists", lists) if lists is not None and num_noise is None else None
    how = how or _plan(query, candidates, scoring, num_noise)
    if how.lists is not None:
        return _of_lists(query, candidates, scoring, how.lists, bias, num_noise)
    if how.method in ("triton", "masks"):
        compute = fused_logistic if how.method == "triton" else masked_logistic
        losses, num_positives = compute(query, candidates, scoring, bias)
        own = own_positive_scores(query, candidates, scoring)
        if own is not None:
            losses, num_positives = losses + F.softplus(-(own + bias)).sum(dim=1), num_positives + own.shape[1]
        return torch.where(num_positives > 0, losses, 0), num_positives > 0

    def of_rows(query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        values, positive, valid = score_matrix(query, candidates, scoring)
        values = values + bias
        if num_noise is not None and scoring.correction:
            number = (valid & ~positive).sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]
            values = values + (number / num_noise).log()
        return logistic_loss(values, positive, valid, num_noise), positive.any(dim=1)

    used = [scoring.temperature, bias]
    losses, counted = in_blocks(of_rows, query, candidates, used, scoring.cosine, how.method == "matrix")
    return losses, counted


def pair_losses(query: Tensor, candidates: Tensor, scoring: Scoring, bias: Tensor) -> Tensor:
    """Of queries [B, D] whose positive is the candidate [B, D] with the same number, from one matrix, [B]."""
    scores = similarity(query, candidates, scoring.cosine) / scoring.temperature + bias
    scores.diagonal().neg_()
    return F.softplus(scores).sum(dim=1)


@torch.no_grad()
def log_partition(query: Tensor, candidates: Candidates, scoring: Scoring) -> tuple[Tensor, PairLists | None]:
    """log of the mean over queries of an unbiased estimate of Z = sum over classes of exp(score), scalar.

    The second result is the lists of pairs for `logistic_losses`, if there are any.

    From draws that may hit the query's own class it is sum_j exp(s_j) / (k q_j), the log-sum-exp of corrected scores.
    Where groups leave the query's own class out of the noise (a whole table, Poisson draws), its exp(s) is added,
    without a margin. Positives among the shared candidates are no noise and are not counted. Queries without noise are
    left out; -inf where no query has any.
    """
    scoring = scoring._replace(margin=None)
    how = _plan(query, candidates, scoring, None)
    if how.lists is not None and not candidates.ring:
        sums = list_sums(query, candidates, scoring, how.lists)
        log_z, num_negatives = sums.negatives, how.lists.num_negatives
        own = None if sums.own is None else sums.own / scoring.temperature
    else:
        stats = statistics(query, candidates, scoring)
        log_z, num_negatives = stats.lse_neg, stats.num_negatives
        own = own_positive_scores(query, candidates, scoring._replace(correction=False))
    if own is not None and candidates.excluded_groups is not None:
        log_z = torch.logaddexp(log_z, own.logsumexp(dim=1))
    some = num_negatives > 0
    total = log_z.masked_fill(~some, -torch.inf).logsumexp(dim=0)
    return total - some.sum().clamp(min=1).to(total.dtype).log(), how.lists


def _plan(query: Tensor, candidates: Candidates, scoring: Scoring, num_noise: float | None) -> Plan:
    how = plan(query, candidates, scoring, masks=num_noise is None, triton=num_noise is None)
    if how.lists is not None and num_noise is not None:
        number = how.lists.num_negatives
        if candidates.ring or not bool((number == number[:1]).all()):  # then every query needs a shift of its own
            return plan(query, candidates, scoring, lists=False, masks=False, triton=False)
    return how


def _of_lists(
    query: Tensor, candidates: Candidates, scoring: Scoring, lists: PairLists, bias: Tensor, num_noise: float | None
) -> tuple[Tensor, Tensor]:
    """From tiles; the positives are scored by themselves."""
    lists = ring_lists(candidates, lists) if candidates.ring else lists
    weight = None
    if num_noise is not None and len(query):
        number = lists.num_negatives[0].clamp(min=1)  # the same for every query
        weight = num_noise / number
        bias = bias + (number / num_noise).log() if scoring.correction else bias
    sums = list_sums(query, candidates, scoring, lists, bias=bias, logistic=True)
    listed, own = sums.listed, sums.own_scores
    assert listed is not None
    losses = sums.negatives if weight is None else weight * sums.negatives
    counted = lists.num_positives > 0
    if own is not None:
        losses = losses + F.softplus(-(own + bias)).sum(dim=1)
        counted = torch.ones_like(counted)
    if len(listed):
        losses = losses.index_add(0, lists.positive.row, F.softplus(-(listed + bias)))
    return torch.where(counted, losses, 0), counted
