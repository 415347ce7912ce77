"""NCE, negative sampling and sampled softmax as functions of scores, for models that compute their own.

B data, K noise draws. Scores are computed in float32 at least. `reduction="mean"` is the mean over the data, `"none"`
one loss for each, [B]. Raises InputError for shapes that do not fit.
"""

from typing import Literal

import torch
from torch import Tensor

from contrast.candidates import LOWEST_LOG_Q
from contrast.distributed import mean_counted
from contrast.errors import InputError
from contrast.losses.logistic import logistic_loss
from contrast.losses.scores import Scores
from contrast.losses.similarity import at_least_float32
from contrast.losses.softmax import softmax_loss

Reduction = Literal["mean", "none"]


def nce(
    data_scores: Tensor,
    noise_scores: Tensor,
    data_log_q: float | Tensor,
    noise_log_q: float | Tensor,
    reduction: Reduction = "mean",
) -> Tensor:
    """Noise-contrastive estimation (Gutmann and Hyvarinen 2010, eq. 3; Mnih and Teh 2012, eq. 9): data or noise?

    data_scores   [B], unnormalised log probabilities of the data; any log Z already subtracted
    noise_scores  [B, K], of K draws from q for each, or [K], the same for all
    data_log_q    [B] or a scalar: log(K q(data)), the log expected COUNT among the draws, not log q
    noise_log_q   log(K q(noise)), of a shape that broadcasts to that of noise_scores
    "none": [B].

        loss_i = -log sigmoid(s_i - log K q(i)) - sum_j log sigmoid(log K q(n_j) - s_j)

    A draw that equals the datum stays among the noise. The optimum is s = log p, normalised by itself.
    """
    scores = _data_and_noise(data_scores, noise_scores, data_log_q, noise_log_q)
    return reduced(logistic_loss(*scores), None, reduction)


def negative_sampling(data_scores: Tensor, noise_scores: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Negative sampling (Mikolov et al. 2013, eq. 4): `nce` without the correction, so no model of probabilities.

    data_scores [B]; noise_scores [B, K] or [K]. "none": [B]. The optimum is s = log(p / (K q)).

        loss_i = -log sigmoid(s_i) - sum_j log sigmoid(-s_j)
    """
    scores = _data_and_noise(data_scores, noise_scores, 0.0, 0.0)
    return reduced(logistic_loss(*scores), None, reduction)


def sampled_softmax(
    data_scores: Tensor,
    noise_scores: Tensor,
    data_log_q: float | Tensor,
    noise_log_q: float | Tensor,
    reduction: Reduction = "mean",
) -> Tensor:
    """Sampled softmax (Bengio and Senecal 2008; Jean et al. 2015; ranking NCE, Ma and Collins 2018): data among noise.

    Arguments as for `nce`; a constant added to all log_q changes nothing. "none": [B]. With c = s - log_q,

        loss_i = -log( exp(c_i) / (exp(c_i) + sum_j exp(c_j)) ).

    Two pairings have their optimum at s = log p + constant: independent draws with replacement, a draw that equals the
    datum kept, log_q = log(K q); and draws of every class on its own with probability pi, the datum's class left out,
    log_q = log pi. In both the datum's score is corrected too.
    """
    scores = _data_and_noise(data_scores, noise_scores, data_log_q, noise_log_q)
    return reduced(softmax_loss(*scores), None, reduction)


def reduced(losses: Tensor, counted: Tensor | None, reduction: Reduction, gather: bool = False) -> Tensor:
    """counted [B]: which queries count; None: all do."""
    if checked(reduction) == "none":
        return losses
    if gather:
        return mean_counted(losses, torch.ones_like(losses, dtype=torch.bool) if counted is None else counted)
    return losses.mean() if counted is None else losses.sum() / counted.sum().clamp(min=1)


def checked(reduction: Reduction) -> Reduction:
    """`reduction` itself. InputError for another word than mean or none."""
    if reduction not in ("mean", "none"):
        raise InputError(f"reduction is mean or none, not {reduction!r}")
    return reduction


def _data_and_noise(data: Tensor, noise: Tensor, data_log_q: float | Tensor, noise_log_q: float | Tensor) -> Scores:
    """Corrected scores of the data, in the first column, and of the noise: [B, 1 + K]."""
    if data.ndim != 1 or noise.ndim not in (1, 2) or noise.shape[:-1] not in ((), data.shape) or not noise.numel():
        raise InputError(
            f"scores of the data are [B], of their noise [B, K] or [K], got {list(data.shape)} and {list(noise.shape)}"
        )
    data, noise = at_least_float32(data), at_least_float32(noise)
    data = data - _fitting("data_log_q", data_log_q, data)  # [B]
    noise = noise - _fitting("noise_log_q", noise_log_q, noise)  # [B, K] or [K]
    values = torch.cat([data[:, None], noise.expand(len(data), -1)], dim=1)
    positive = torch.zeros_like(values, dtype=torch.bool)
    positive[:, 0] = True
    return Scores(values, positive, torch.ones_like(positive))


def _fitting(name: str, log_q: float | Tensor, scores: Tensor) -> Tensor:
    log_q = torch.as_tensor(log_q, dtype=scores.dtype, device=scores.device)
    sizes = zip(reversed(log_q.shape), reversed(scores.shape), strict=False)
    if log_q.ndim > scores.ndim or any(one not in (1, other) for one, other in sizes):
        raise InputError(f"{name} of shape {list(log_q.shape)} does not fit scores of shape {list(scores.shape)}")
    return log_q.clamp(min=LOWEST_LOG_Q)
