"""The softmax loss whose target is a distribution over the candidates, not the positives among them.

B queries, P positives of each query's own, C shared candidates. A one-hot target is InfoNCE, and a target that is
uniform over the positives is SupCon with the positives in the denominator (Khosla et al. 2020, eq. 2). A teacher's
softmax gives ReSSL (Zheng et al. 2021), SEED (Fang et al. 2021), CompRess (Koohpayegani et al. 2020), DINO (Caron et
al. 2021) and SwAV (Caron et al. 2020).
"""

from dataclasses import replace

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.losses.plan import Scoring
from contrast.losses.scores import Scores, score_matrix


def soft_target_loss(scores: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Cross entropy of softmax(scores) over the valid candidates with `target`, [B].

    scores, target [B, C] float, valid [B, C] bool. Each row of `target` sums to 1 over the valid candidates. A query
    without any has the loss 0, with a zero gradient.

        loss_i = log sum_j exp(s_ij) - sum_j p_ij s_ij
    """
    lse = scores.masked_fill(~valid, torch.finfo(scores.dtype).min).logsumexp(dim=1)
    loss = lse - (target * scores.masked_fill(~valid, 0)).sum(dim=1)
    return torch.where(valid.any(dim=1), loss, 0)


@torch.no_grad()
def teacher_targets(candidates: Candidates, valid: Tensor) -> Tensor:
    """The teacher's distribution over a query's own positives and the shared candidates, [B, P + C]; 0 where not valid.

    valid  [B, P + C]; a row without any is 0
    """
    teacher = candidates.teacher
    assert teacher is not None
    others = candidates.vectors if teacher.vectors is None else teacher.vectors
    seen = replace(candidates, vectors=others, log_q=teacher.log_q, positives_log_q=None, normalized=False)
    temperature = torch.tensor(teacher.temperature, dtype=torch.float64)
    scores = score_matrix(teacher.query, seen, Scoring(temperature)).values
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~valid, lowest).softmax(dim=1).masked_fill(~valid, 0)


def soft_target_rows(query: Tensor, candidates: Candidates, scores: Scores) -> tuple[Tensor, Tensor]:
    """Losses [B] with the teacher's targets, and which queries have a candidate, [B] bool."""
    target = teacher_targets(candidates, scores.valid)
    return soft_target_loss(scores.values, target.to(scores.values.dtype), scores.valid), scores.valid.any(dim=1)
