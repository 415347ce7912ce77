"""Classes at their frequencies: a next-word model that begins as the unigram model, whatever its output layer is.

N classes, D dimensions; the last feature of a query is 1, so the last component of a vector is its bias.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from contrast.heads import NCE, AdaptiveSoftmax
from contrast.negatives import Table, Tree
from contrast.samplers import Sampler


@torch.no_grad()
def start_at_frequencies(negatives: Any, head: Any, counts: Tensor) -> None:
    """Sets the biases so that, with all else 0, every class has the probability counts / sum(counts), counts [N] > 0.

    A table's bias is log p, under negative sampling log(p / (K q)), its optimum; a node's in a tree is the log odds of
    its turns. An adaptive softmax has the bias of its head, and within each tail cluster the first component of the
    projection is made the constant feature.
    """
    share = counts.double()
    log_p = (share / share.sum()).log()  # [N]
    if isinstance(negatives, Table):
        if isinstance(head, NCE) and not head.correction and isinstance(negatives.sampler, Sampler):
            noise = torch.tensor(float(head.noise or negatives.draws), dtype=torch.float64)
            log_q = negatives.sampler.log_prob(torch.arange(len(log_p), device=negatives.vectors.device))
            log_p = log_p - log_q.double().cpu() - noise.log()
        if isinstance(head, NCE):
            log_p = log_p - head.bias().double().cpu()
        negatives.vectors[:, -1] = log_p.to(negatives.vectors)
    elif isinstance(negatives, Tree):
        negatives.vectors[:, -1] = log_odds(negatives, share).to(negatives.vectors)
    elif isinstance(head, AdaptiveSoftmax):
        _start_adaptive(head, log_p)


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
        down[:1] = 0  # a slice: D' may be 0
        down[:1, -1] = 1
        up[:, :1] = (cluster - cluster.logsumexp(dim=0))[:, None].to(up)
