"""The logistic loss on scores: NCE and its whole family, one value per query.

B queries, C candidates. A score is the log odds of "data, not noise"; it is not a probability.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_loss(scores: Tensor, positive: Tensor, valid: Tensor, noise: float | None = None) -> Tensor:
    """Binary cross entropy of every valid candidate, summed: softplus(-s) of positives, softplus(s) of the rest.

    scores [B, C] float; positive, valid [B, C] bool, every positive valid. Returns [B]; 0 for a query without a
    positive, whose gradient is 0 too. With `noise` the rest of a query weighs as much as so many of them.

    With scores s - log(k q) this is NCE (Gutmann and Hyvarinen 2010, eq. 3; Mnih and Teh 2012, eq. 9), without the
    correction negative sampling (Mikolov et al. 2013, eq. 4), over all pairs of a batch SigLIP (Zhai et al. 2023,
    algorithm 1), over the turns of a path hierarchical softmax (Morin and Bengio 2005).
    """
    signed = torch.where(positive, -scores, scores)  # [B, C]
    each = F.softplus(signed).masked_fill(~valid, 0)
    if noise is not None:
        rest = valid & ~positive
        each = torch.where(rest, each * (noise / rest.sum(dim=1, keepdim=True).clamp(min=1)), each)
    loss = each.sum(dim=1)  # [B, C] -> [B]
    return torch.where(positive.any(dim=1), loss, 0)
