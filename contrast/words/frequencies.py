"""Starts a next-word model as the unigram model, whatever its output layer is.

N classes, D dimensions. The last feature of a query is 1, so the last component of a class vector is its bias.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from contrast.errors import InputError
from contrast.heads import NCE, AdaptiveSoftmax
from contrast.heads.head import Head
from contrast.negatives import Table, Tree
from contrast.samplers import Poisson, Sampler


@torch.no_grad()
def start_at_frequencies(negatives: nn.Module, head: nn.Module, counts: Tensor) -> None:
    """Sets the biases to those that minimise the expected loss when all else is 0, for classes with counts [N] > 0.

    A score is s = component / temperature + the head's bias, so the component is set to temperature (s - bias), with
    the head's present temperature and bias. The best s of a class with p = counts / sum(counts) is:

    Table  `best_scores`: log p under InfoNCE and NCE, less log(k q) in negative sampling
    Tree   a node's loss is l softplus(-s) + r softplus(s), where l and r are the shares of the classes below it that
           turn one way and the other; its slope is 0 at s = log(l / r)

    An adaptive softmax has neither temperature nor bias. Its head gets log p of the classes in it and of its clusters,
    and in each tail cluster the first component of the projection becomes the constant feature.

    Raises InputError for a head on cosines, in which no component is a bias, and as `best_scores`.
    """
    share = counts.double() / counts.sum()  # [N], p
    if isinstance(head, AdaptiveSoftmax):
        _start_adaptive(head, share.log())
        return
    assert isinstance(head, Head)
    assert isinstance(negatives, Table | Tree)
    if head.cosine:
        raise InputError("cosines have no bias that could start at the frequencies: set model.frequencies=false")
    best = log_odds(negatives, share) if isinstance(negatives, Tree) else best_scores(negatives, head, share.log())
    negatives.vectors[:, -1] = (best * head.temperature().double().cpu()).to(negatives.vectors)


def best_scores(table: Table, head: Head, log_p: Tensor) -> Tensor:
    """Scores [N], without the head's bias, that are best for classes of log_p [N] float64 whatever the query is.

    Under InfoNCE (without its options) they are log p: the softmax over the candidates, of scores less log q or log pi
    where they are sampled, is then the probability of each to be the datum.

    Under NCE let t be the score that enters the loss. A class is the datum with probability p and has weight m as
    noise, so that its part of the expected loss is p softplus(-t) + m softplus(t), whose slope is 0 at t = log(p / m).

        m = k q               for k independent draws; with the correction t = s - log(k q)
        m = (1 - p) pi        for a Poisson sample, which leaves out the datum itself; t = s - log pi
        m = 1 - p             for the whole table, which also leaves it out; t = s

    So s is log p, or log(p / (1 - p)) where the datum is left out. In negative sampling t = s, and the best s is less
    by log(k q) or log pi. With `num_noise`=k, a head multiplies m and the correction by k / n, where n is the mean
    number of noise words.

    Raises InputError in negative sampling for a class that is never drawn: no score is high enough for it.
    """
    if not isinstance(head, NCE):
        return log_p
    sampler, classes = table.sampler, torch.arange(len(log_p), device=table.vectors.device)
    best, correction = log_p, torch.zeros_like(log_p)  # [N]
    if isinstance(sampler, Sampler):
        correction = sampler.log_prob(classes).double().cpu() + math.log(head.num_noise or table.draws)
    else:
        log_others = torch.log1p(-log_p.exp())  # log(1 - p)
        best = log_p - log_others
        if isinstance(sampler, Poisson):
            correction = sampler.log_inclusion(classes).double().cpu()
        if head.num_noise is not None:
            correction = correction + math.log(head.num_noise) - (correction + log_others).logsumexp(dim=0)
    if not head.correction:
        best = best - correction
        for never in best.isinf().nonzero()[:1]:
            raise InputError(
                f"class {int(never)} of {len(best)} is never drawn, so negative sampling has no best score for it: set "
                "model.frequencies=false"
            )
    return best - head.bias().double().cpu()


def log_odds(tree: Tree, share: Tensor) -> Tensor:
    """log of the share of the classes that turn one way at each inner node over that of those that turn the other."""
    path, sign = tree.path.long().cpu(), tree.sign.cpu()  # [N, L]
    share, valid = share[:, None].expand(path.shape), path >= 0
    left, right = (
        torch.bincount(path[at], weights=share[at], minlength=len(tree.vectors))
        for at in (valid & (sign > 0), valid & (sign < 0))
    )
    return left.log() - right.log()


def _start_adaptive(head: AdaptiveSoftmax, log_p: Tensor) -> None:
    softmax = head.softmax
    first = softmax.shortlist_size
    bounds = [first, *softmax.cutoffs[1:]]  # torch appends N to the cutoffs
    clusters = [log_p[start:stop] for start, stop in pairwise(bounds)]
    bias = torch.cat([log_p[:first], *(cluster.logsumexp(dim=0)[None] for cluster in clusters)])
    softmax.head.weight[:, -1] = bias.to(softmax.head.weight)
    for tail, cluster in zip(softmax.tail, clusters, strict=True):
        down, up = tail.parameters()  # [D', D], [classes, D']
        down[:, -1] = 0
        down[0] = 0
        down[0, -1] = 1
        up[:, 0] = (cluster - cluster.logsumexp(dim=0)).to(up)
