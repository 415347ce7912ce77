"""The losses as plain functions, for a training loop of your own.

    from contrast.functional import nt_xent
    loss = nt_xent(projector(encoder(one)), projector(encoder(other)), temperature=0.2)
    loss.backward()

N pairs, B queries, K negatives or noise draws, D dimensions, T temperature, s similarity. Vectors are compared by their
cosine, or by their dot product with `normalize=False`, in float32 whatever autocast says (float64 stays). T is a number
or a scalar tensor that gets a gradient; a tensor on a GPU is not checked, since reading it would wait for the device.
`reduction="mean"` is the mean over the queries that have a positive, `"none"` one loss per query, 0 without a positive.

Single process: nothing is gathered from other ranks; the heads with the sources of `contrast.negatives` do that.
Raises InputError for shapes that do not fit, a temperature that is not positive, and a batch without negatives.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.heads.head import Head, Scores, floored
from contrast.heads.temperature import Temperature, as_temperature
from contrast.losses.logistic import logistic_loss
from contrast.losses.similarity import at_least_float32
from contrast.losses.softmax import softmax_loss

Reduction = Literal["mean", "none"]


def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.1, reduction: Reduction = "mean", normalize: bool = True
) -> Tensor:
    """NT-Xent (Chen et al. 2020, eq. 1): the other view of an image against all views of the batch.

    z1, z2 [N, D]: row i of both is image i. "none": [2N], z1's rows first. With z = (z1, z2), j the other view of i,

        loss_i = -log( exp(s_ij / T) / sum_{k != i} exp(s_ik / T) ).
    """
    scores = _between_views(z1, z2, None, temperature, normalize)
    return _reduced(softmax_loss(*scores), scores, reduction)


def dcl(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.1, reduction: Reduction = "mean", normalize: bool = True
) -> Tensor:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6): NT-Xent without the positive in the denominator.

    Shapes as for `nt_xent`. With z = (z1, z2), j the other view of i,

        loss_i = -s_ij / T + log sum_{k != i, j} exp(s_ik / T).
    """
    scores = _between_views(z1, z2, None, temperature, normalize)
    return _reduced(softmax_loss(*scores, decoupled=True), scores, reduction)


def sup_con(
    z1: Tensor,
    z2: Tensor | None,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    normalize: bool = True,
) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2): all other views with a view's label are its positives.

    z1, z2 [N, D], labels [N] int64. z2=None: one view of each image; alone with its label, it does not count. "none":
    [2N], z1's rows first, or [N]. With z = (z1, z2), P(i) the other views with i's label,

        loss_i = -1 / |P(i)| sum_{p in P(i)} log( exp(s_ip / T) / sum_{k != i} exp(s_ik / T) ).
    """
    if labels.shape != z1.shape[:1]:
        raise InputError(f"sup_con needs a label for each of {len(z1)} rows, got labels of shape {list(labels.shape)}")
    scores = _between_views(z1, z2, labels, temperature, normalize)
    return _reduced(softmax_loss(*scores), scores, reduction)


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    normalize: bool = True,
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, eq. 4; with a queue He et al. 2020, eq. 1): a query's key against negatives.

    query, key [B, D]; negatives [K, D], shared by all queries, or [B, K, D], each query's own. None: the other keys of
    the batch. "none": [B].

        loss_i = -log( exp(s(q_i, k_i) / T) / (exp(s(q_i, k_i) / T) + sum_j exp(s(q_i, n_j) / T)) )
    """
    _pairs("query", query, "key", key, least=2 if negatives is None else 1)
    ids = torch.arange(len(query), device=query.device)
    if negatives is None:
        candidates = Candidates(key, ids, ids)
    else:
        b, d = query.shape
        if not (negatives.ndim in (2, 3) and negatives.shape[-1] == d and negatives.shape[:-2] in ((), (b,))):
            raise InputError(f"negatives of {b} queries are [K, {d}] or [{b}, K, {d}], got {list(negatives.shape)}")
        if not negatives.shape[-2]:
            raise InputError(f"info_nce of {b} queries needs at least 1 negative, got {list(negatives.shape)}")
        candidates = Candidates(negatives, ids, positives=key[:, None])
    scores = _scores(query, candidates, temperature, normalize)
    return _reduced(softmax_loss(*scores), scores, reduction)


def clip_loss(
    image: Tensor,
    text: Tensor,
    temperature: float | Tensor = 0.07,
    reduction: Reduction = "mean",
    normalize: bool = True,
) -> Tensor:
    """CLIP's symmetric loss (Radford et al. 2021, figure 3): mean of InfoNCE from image to text and from text to image.

    image, text [N, D]. "none": [N], of a pair the mean of its two directions.

        loss_i = -1/2 log( exp(s_ii / T) / sum_k exp(s_ik / T) ) - 1/2 log( exp(s_ii / T) / sum_k exp(s_ki / T) )
    """
    scores = _between_pairs(image, text, temperature, normalize)
    transposed = Scores(*(part.T for part in scores))
    return _reduced((softmax_loss(*scores) + softmax_loss(*transposed)) / 2, scores, reduction)


def siglip_loss(
    image: Tensor,
    text: Tensor,
    temperature: float | Tensor,
    bias: float | Tensor,
    reduction: Reduction = "mean",
    normalize: bool = True,
) -> Tensor:
    """SigLIP's sigmoid loss (Zhai et al. 2023, algorithm 1): is this image and text a pair? For all N^2 of them.

    image, text [N, D]; T = 1 / t of the paper, where it starts at 0.1 and the bias at -10. "none": [N], of an image.
    With y_ij = 1 for i = j and -1 otherwise,

        loss_i = -sum_j log sigmoid(y_ij (s_ij / T + bias)).
    """
    if isinstance(bias, Tensor) and bias.numel() != 1:
        raise InputError(f"the bias must be a scalar, got shape {list(bias.shape)}")
    values, positive, valid = scores = _between_pairs(image, text, temperature, normalize)
    return _reduced(logistic_loss(values + bias, positive, valid), scores, reduction)


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
    scores = _beside(data_scores, noise_scores, data_log_q, noise_log_q)
    return _reduced(logistic_loss(*scores), scores, reduction)


def negative_sampling(data_scores: Tensor, noise_scores: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Negative sampling (Mikolov et al. 2013, eq. 4): `nce` without the correction, so no model of probabilities.

    data_scores [B]; noise_scores [B, K] or [K]. "none": [B]. The optimum is s = log(p / (K q)).

        loss_i = -log sigmoid(s_i) - sum_j log sigmoid(-s_j)
    """
    scores = _beside(data_scores, noise_scores, 0.0, 0.0)
    return _reduced(logistic_loss(*scores), scores, reduction)


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
    scores = _beside(data_scores, noise_scores, data_log_q, noise_log_q)
    return _reduced(softmax_loss(*scores), scores, reduction)


class _Given(Temperature):
    """The caller's tensor, with its gradient."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Tensor:
        return self.value


def _scores(query: Tensor, candidates: Candidates, temperature: float | Tensor, normalize: bool) -> Scores:
    return Head(_given(temperature), cosine=normalize).raw_scores(query, candidates)


def _between_views(
    z1: Tensor, z2: Tensor | None, labels: Tensor | None, temperature: float | Tensor, normalize: bool
) -> Scores:
    """Of all views against all, [2N, 2N]; without a second view [N, N]."""
    _pairs("z1", z1, "z2", z1 if z2 is None else z2)
    z = torch.cat([at_least_float32(part) for part in (z1, z2) if part is not None])  # [2N, D]
    ids = torch.arange(len(z1), device=z.device) if labels is None else labels
    ids = ids.repeat(len(z) // len(z1))  # [2N]
    return _scores(z, Candidates(z, ids, ids, self_index=torch.arange(len(z), device=z.device)), temperature, normalize)


def _between_pairs(image: Tensor, text: Tensor, temperature: float | Tensor, normalize: bool) -> Scores:
    """Of all images against all texts, [N, N], the diagonal positive."""
    _pairs("image", image, "text", text)
    ids = torch.arange(len(image), device=image.device)
    return _scores(image, Candidates(text, ids, ids), temperature, normalize)


def _beside(data: Tensor, noise: Tensor, data_log_q: float | Tensor, noise_log_q: float | Tensor) -> Scores:
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
    if log_q.ndim > scores.ndim or any(here not in (1, there) for here, there in sizes):
        raise InputError(f"{name} of shape {list(log_q.shape)} does not fit scores of shape {list(scores.shape)}")
    return floored(log_q)


def _given(temperature: float | Tensor) -> Temperature:
    if not isinstance(temperature, Tensor):
        as_temperature(temperature)  # refuses what is not positive
        return _Given(torch.tensor(temperature, dtype=torch.float64))  # a scalar does not raise the scores to float64
    if temperature.numel() != 1:
        raise InputError(f"temperature must be a scalar, got shape {list(temperature.shape)}")
    if temperature.device.type == "cpu" and not 0 < temperature.item() < math.inf:
        raise InputError(f"temperature must be a positive number, got {temperature.item()}")
    return _Given(temperature.reshape(()))


def _pairs(one: str, a: Tensor, other: str, b: Tensor, least: int = 2) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise InputError(f"{one} and {other} are [N, D] both, got {list(a.shape)} and {list(b.shape)}")
    if len(a) < least:
        raise InputError(f"a batch of {len(a)} has no negatives: {one} and {other} need at least {least} rows")


def _reduced(losses: Tensor, scores: Scores, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return losses
    if reduction != "mean":
        raise InputError(f"reduction is mean or none, not {reduction!r}")
    counted = scores.positive.any(dim=1)
    return torch.where(counted, losses, 0).sum() / counted.sum().clamp(min=1)
