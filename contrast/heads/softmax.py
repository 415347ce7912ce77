"""The softmax loss on scores: InfoNCE and its whole family, one value per query.

B queries, C candidates. Scores are already divided by the temperature; they are not probabilities.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_loss(scores: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    """Log-sum-exp over the valid candidates minus the mean over the positive ones.

    scores [B, C] float; positive, valid [B, C] bool, every positive valid. Returns [B]; 0 for a query without a
    positive, whose gradient is 0 too.

    With one positive this is InfoNCE (van den Oord et al. 2018, eq. 4), NT-Xent on both views (Chen et al. 2020,
    eq. 1) and cross entropy over a whole table; with several it is the outer sum of SupCon (Khosla et al. 2020,
    eq. 2).

    Written from the log-sum-exps of the negatives and of the positives,

        loss = softplus(lse_neg - lse_pos) + lse_pos - mean_pos,

    so that the small loss of a solved query is not the difference of two large numbers.
    """
    lowest = torch.finfo(scores.dtype).min  # not -inf: a row without negatives keeps finite gradients
    lse_pos = scores.masked_fill(~positive, lowest).logsumexp(dim=1)  # [B]
    lse_neg = scores.masked_fill(positive | ~valid, lowest).logsumexp(dim=1)  # [B]
    count = positive.sum(dim=1)  # [B]
    mean_pos = scores.masked_fill(~positive, 0).sum(dim=1) / count.clamp(min=1)  # [B]
    loss = F.softplus(lse_neg - lse_pos) + (lse_pos - mean_pos)
    return torch.where(count > 0, loss, 0)
