"""Classes at their frequencies: a next-word model that begins as the unigram model, whatever its output layer is.

N classes, D dimensions; the last feature of a query is 1, so the last component of a vector is its bias.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.heads import NCE, AdaptiveSoftmax
from contrast.negatives import Table, Tree
from contrast.samplers import Poisson, Sampler


@torch.no_grad()
def start_at_frequencies(negatives: Any, head: Any, counts: Tensor) -> None:
    """Sets the biases to where the expected loss is least, all else being 0, of classes with counts [N] > 0.

    A score is s = component / temperature + the head's bias, so the component is temperature (s - bias), with the
    temperature and the bias that the head has now. The best s of a class with p = counts / sum(counts):

    Table  `best_scores`: log p under InfoNCE and NCE, less log(k q) in negative sampling
    Tree   a node's loss is l softplus(-s) + r softplus(s), l and r the shares of the classes below that turn one way
           and the other: its slope is 0 at s = log(l / r)

    An adaptive softmax has neither temperature nor bias: log p of the classes in its head and of its clusters, and
    within each tail cluster the first component of the projection is made the constant feature.

    Raises InputError for a head on cosines, in which no component is a bias, and as `best_scores`.
    """
    share = counts.double()
    log_p = (share / share.sum()).log()  # [N]
    if isinstance(head, AdaptiveSoftmax):
        _start_adaptive(head, log_p)
    elif head.cosine:
        raise InputError("a model begins at the frequencies by its biases; a cosine has none: model.frequencies=false")
    else:
        best = log_odds(negatives, share) if isinstance(negatives, Tree) else best_scores(negatives, head, log_p)
        negatives.vectors[:, -1] = (best * head.temperature().double().cpu()).to(negatives.vectors)


def best_scores(table: Table, head: Any, log_p: Tensor) -> Tensor:
    """Scores [N], without the head's bias, that are best for classes of log_p [N] float64 whatever the query is.

    Under InfoNCE (without its options) they are log p: the softmax over the candidates, of scores less log q or log pi
    where they are drawn, is then the probability of each to be the datum.

    Under NCE let t be the score as the loss sees it. A class is the datum with probability p and weighs m as noise, so
    that its part of the expected loss is p softplus(-t) + m softplus(t), whose slope is 0 at t = log(p / m). With

        m = k q               of k independent draws, and t = s - log(k q) with the correction
        m = (1 - p) pi        of a Poisson sample, which leaves the datum itself out, and t = s - log pi
        m = 1 - p             of the whole table, which leaves it out too, and t = s

    s is log p, or log(p / (1 - p)) where the datum is left out; in negative sampling t = s, and it is less by log(k q)
    or log pi. A head's own `noise` k makes m and the correction k / n times those of n candidates, n being the mean
    number of a sample.

    Raises InputError in negative sampling for a class that is never drawn: no score is high enough for it.
    """
    if not isinstance(head, NCE):
        return log_p
    sampler, everything = table.sampler, torch.arange(len(log_p), device=table.vectors.device)
    best, log_m = log_p, torch.zeros_like(log_p)  # log_m [N]: what the correction takes away
    if isinstance(sampler, Sampler):
        log_m = sampler.log_prob(everything).double().cpu() + math.log(head.num_noise or table.draws)
    else:
        log_others = torch.log1p(-log_p.exp())  # log(1 - p)
        best = log_p - log_others
        if isinstance(sampler, Poisson):
            log_m = sampler.log_inclusion(everything).double().cpu()
        if head.num_noise is not None:
            log_m = log_m + math.log(head.num_noise) - (log_m + log_others).logsumexp(dim=0)
    if not head.correction:
        best = best - log_m
        for never in torch.nonzero(best.isinf()).flatten().tolist()[:1]:
            raise InputError(
                f"class {never} of {len(best)} is never drawn, so negative sampling has no best score for it: "
                "model.frequencies=false"
            )
    return best - head.bias().double().cpu()


def log_odds(tree: Tree, share: Tensor) -> Tensor:
    """log of the share of the classes that turn one way at each inner node over that of those that turn the other."""
    nodes = share.new_zeros(2, len(tree.vectors))  # of turn False, then True
    path, sign = tree.path.long().cpu(), tree.sign.cpu()
    for level in range(path.shape[1]):
        for side, at in ((0, 1), (1, -1)):
            those = (path[:, level] >= 0) & (sign[:, level] == at)
            nodes[side].index_add_(0, path[those, level], share[those])
    return nodes[0].log() - nodes[1].log()


def _start_adaptive(head: AdaptiveSoftmax, log_p: Tensor) -> None:
    softmax = head.softmax
    first = softmax.shortlist_size
    bounds = [first, *softmax.cutoffs[1:]]
    clusters = [log_p[start:stop] for start, stop in pairwise(bounds)]  # torch ends them with N
    bias = torch.cat([log_p[:first], *(cluster.logsumexp(dim=0)[None] for cluster in clusters)])
    softmax.head.weight[:, -1] = bias.to(softmax.head.weight)
    for tail, cluster in zip(softmax.tail, clusters, strict=True):
        down, up = tail.parameters()  # [D', D], [classes, D']
        down[:, -1] = 0
        down[0] = 0
        down[0, -1] = 1
        up[:, 0] = (cluster - cluster.logsumexp(dim=0)).to(up)
