"""The losses as plain functions, for a training loop of your own.

    from contrast.functional import nt_xent
    loss = nt_xent(projector(encoder(one)), projector(encoder(other)), temperature=0.2)
    loss.backward()

N pairs, B queries, K negatives or noise draws, D dimensions, W ranks, T temperature, s similarity.

Vectors are compared by their cosine, or by their dot product with `normalize=False`, in float32 whatever autocast says
(float64 stays). T is a number or a scalar tensor, which gets a gradient. A tensor on a GPU is not checked, because
reading it would wait for the device. `reduction="mean"` is the mean over the queries that have a positive, `"none"` one
loss per query, 0 without a positive.

Scores are computed tile by tile where that is faster, so that the whole matrix is never in memory: 65,536 views need
less than 1 GiB. `torch.compile(..., fullgraph=True)` traces the functions with one matrix of scores.

`gather=True` takes the candidates of all ranks, with an exact gradient. The mean is then this rank's share of the mean
over the queries of all ranks, times W, because DDP divides the gradients by W. Several ranks thus train as one process
would. Every rank has to call the function, with the same number of rows.

Raises InputError for shapes that do not fit, a temperature that is not positive, and a batch without negatives.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from contrast.candidates import Candidates, as_ids
from contrast.distributed import gather as gather_rows
from contrast.distributed import rank, world_size
from contrast.errors import InputError
from contrast.losses import logistic
from contrast.losses.plan import MAX_SCORES_LABELS, MAX_SCORES_SIGMOID, PairLists, Scoring, pair_lists
from contrast.losses.sampled import Reduction, checked, reduced
from contrast.losses.similarity import at_least_float32
from contrast.losses.softmax import label_losses, pair_losses, softmax_losses


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    normalize: bool = True,
    gather: bool = False,
) -> Tensor:
    """NT-Xent (Chen et al. 2020, eq. 1): the other view of an image against all views of the batch.

    z1, z2 [N, D]: row i of both is image i. "none": [2N], z1's rows first. With z = (z1, z2), j the other view of i,

        loss_i = -log( exp(s_ij / T) / sum_{k != i} exp(s_ik / T) ).
    """
    z, candidates, lists = _views(z1, z2, None, gather)
    return _info_nce(z, candidates, _scoring(temperature, normalize), lists, reduction, gather)


def dcl(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    normalize: bool = True,
    gather: bool = False,
) -> Tensor:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6): NT-Xent without the positive in the denominator.

    Shapes as for `nt_xent`. With z = (z1, z2), j the other view of i,

        loss_i = -s_ij / T + log sum_{k != i, j} exp(s_ik / T).
    """
    z, candidates, lists = _views(z1, z2, None, gather)
    losses, _ = softmax_losses(z, candidates, _scoring(temperature, normalize), decoupled=True, lists=lists)
    return reduced(losses, None, reduction, gather)


def sup_con(
    z1: Tensor,
    z2: Tensor | None,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    normalize: bool = True,
    gather: bool = False,
) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2): all other views with a view's label are its positives.

    z1, z2 [N, D], labels [N] of whole numbers. z2=None: one view of each image; an image that is alone with its label
    does not count. "none": [2N], z1's rows first, or [N]. With z = (z1, z2), P(i) the other views with i's label,

        loss_i = -1 / |P(i)| sum_{p in P(i)} log( exp(s_ip / T) / sum_{k != i} exp(s_ik / T) ).
    """
    labels = as_ids("labels", labels).to(z1.device)
    if labels.shape != z1.shape[:1]:
        raise InputError(f"sup_con needs a label for each of {len(z1)} rows, got labels of shape {list(labels.shape)}")
    z, candidates, _ = _views(z1, z2, labels, gather)
    scoring = _scoring(temperature, normalize)
    if not gather and z.device.type == "cpu" and len(z) ** 2 <= MAX_SCORES_LABELS:
        losses, counted = label_losses(z, candidates, scoring)
    else:
        losses, counted = softmax_losses(z, candidates, scoring)
    return reduced(losses, counted, reduction, gather)


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    reduction: Reduction = "mean",
    normalize: bool = True,
    gather: bool = False,
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, eq. 4; with a queue He et al. 2020, eq. 1): a query's key against negatives.

    query, key [B, D]; negatives [K, D], shared by all queries, or [B, K, D], each query's own. None: the other keys of
    the batch. "none": [B]. `gather` takes the keys, or the shared negatives, of all ranks.

        loss_i = -log( exp(s(q_i, k_i) / T) / (exp(s(q_i, k_i) / T) + sum_j exp(s(q_i, n_j) / T)) )
    """
    _check_pairs("query", query, "key", key, gather, least=2 if negatives is None else 1)
    if negatives is None:
        candidates, lists = _paired(query, key, gather)
    else:
        b, d = query.shape
        if not (negatives.ndim in (2, 3) and negatives.shape[-1] == d and negatives.shape[:-2] in ((), (b,))):
            raise InputError(f"negatives of {b} queries are [K, {d}] or [{b}, K, {d}], got {list(negatives.shape)}")
        if not negatives.shape[-2]:
            raise InputError(f"info_nce of {b} queries needs at least 1 negative, got {list(negatives.shape)}")
        if gather and negatives.ndim == 3:
            raise InputError(
                f"gather=True shares negatives [K, {d}] among all ranks, not each query's own [{b}, K, {d}]"
            )
        shared = gather_rows(negatives) if gather else negatives
        candidates, lists = Candidates(shared, torch.arange(b, device=query.device), positives=key[:, None]), None
    return _info_nce(query, candidates, _scoring(temperature, normalize), lists, reduction, gather)


def clip_loss(
    image: Tensor,
    text: Tensor,
    temperature: float | Tensor = 0.07,
    reduction: Reduction = "mean",
    normalize: bool = True,
    gather: bool = False,
) -> Tensor:
    """CLIP's symmetric loss (Radford et al. 2021, figure 3): mean of InfoNCE from image to text and from text to image.

    image, text [N, D]. "none": [N], the mean of both directions of each pair.

        loss_i = -1/2 log( exp(s_ii / T) / sum_k exp(s_ik / T) ) - 1/2 log( exp(s_ii / T) / sum_k exp(s_ki / T) )
    """
    _check_pairs("image", image, "text", text, gather)
    scoring = _scoring(temperature, normalize)
    candidates, lists = _paired(image, text, gather)
    if lists is not None:
        to_text, to_image = pair_losses(image, candidates, scoring, lists, checked(reduction), two_way=True)
        assert to_image is not None
    else:
        to_text = _info_nce(image, candidates, scoring, None, reduction, gather)
        to_image = _info_nce(text, _paired(text, image, gather)[0], scoring, None, reduction, gather)
    return (to_text + to_image) / 2


def siglip_loss(
    image: Tensor,
    text: Tensor,
    temperature: float | Tensor,
    bias: float | Tensor,
    reduction: Reduction = "mean",
    normalize: bool = True,
    gather: bool = False,
) -> Tensor:
    """SigLIP's sigmoid loss (Zhai et al. 2023, algorithm 1): do image i and text j match? For all N^2 combinations.

    image, text [N, D]; T = 1 / t of the paper, where T starts at 0.1 and the bias at -10. "none": [N], one loss for
    each image. With y_ij = 1 for i = j and -1 otherwise,

        loss_i = -sum_j log sigmoid(y_ij (s_ij / T + bias)).
    """
    _check_pairs("image", image, "text", text, gather)
    bias = torch.as_tensor(bias, dtype=None if isinstance(bias, Tensor) else torch.float64, device=image.device)
    if bias.numel() != 1:
        raise InputError(f"the bias must be a scalar, got shape {list(bias.shape)}")
    candidates, lists = _paired(image, text, gather)
    scoring, bias = _scoring(temperature, normalize), bias.reshape(())
    if lists is not None and len(image) ** 2 <= MAX_SCORES_SIGMOID:
        losses = logistic.pair_losses(image, text, scoring, bias)
    else:
        losses, _ = logistic.logistic_losses(image, candidates, scoring, bias, lists=lists)
    return reduced(losses, None, reduction, gather)


def _info_nce(
    query: Tensor,
    candidates: Candidates,
    scoring: Scoring,
    lists: PairLists | None,
    reduction: Reduction,
    gather: bool,
) -> Tensor:
    if lists is None:
        return reduced(softmax_losses(query, candidates, scoring)[0], None, reduction, gather)
    return pair_losses(query, candidates, scoring, lists, checked(reduction))[0]  # the candidates of one rank


def _scoring(temperature: float | Tensor, normalize: bool) -> Scoring:
    if not isinstance(temperature, Tensor):
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature must be a positive number, got {temperature!r}")
        make = _fixed.__wrapped__ if torch.compiler.is_compiling() else _fixed
        return make(temperature, normalize)
    if temperature.numel() != 1:
        raise InputError(f"temperature must be a scalar, got shape {list(temperature.shape)}")
    if not torch.compiler.is_compiling() and temperature.device.type == "cpu" and not 0 < temperature.item() < math.inf:
        raise InputError(f"temperature must be a positive number, got {temperature.item()}")
    return Scoring(temperature.reshape(()), normalize)


@lru_cache(maxsize=16)
def _fixed(temperature: float, normalize: bool) -> Scoring:
    """Kept between calls: a new tensor would be a thirtieth of the time of a small batch."""
    with torch.inference_mode(False):  # training cannot use tensors made in inference mode
        return Scoring(torch.tensor(temperature, dtype=torch.float64), normalize)  # a scalar: scores stay float32


def _views(
    z1: Tensor, z2: Tensor | None, labels: Tensor | None, gather: bool
) -> tuple[Tensor, Candidates, PairLists | None]:
    """The views [2N, D], or [N, D] without a second one, all views as their candidates, and lists of pairs if known."""
    _check_pairs("z1", z1, "z2", z1 if z2 is None else z2, gather)
    z = at_least_float32(z1) if z2 is None else torch.cat([at_least_float32(z1), at_least_float32(z2)])  # [2N, D]
    if labels is None and not gather:
        rules, lists = _known_rules(2, z1.shape[0], z.device)
        return z, rules(z), lists
    if labels is None:
        labels = rank() * len(z1) + torch.arange(len(z1), device=z.device)
    ids = labels.repeat(len(z) // len(z1))
    vectors, all_ids = (gather_rows(z), gather_rows(ids)) if gather else (z, ids)
    self_index = torch.arange(len(z), device=z.device) + (rank() * len(z) if gather else 0)
    return z, Candidates(vectors, ids, all_ids, self_index=self_index, symmetric=True), None


def _paired(query: Tensor, key: Tensor, gather: bool) -> tuple[Candidates, PairLists | None]:
    """Queries against the keys of the whole batch, key i the positive of query i; the lists of pairs where known."""
    if not gather or world_size() == 1:
        rules, lists = _known_rules(1, query.shape[0], query.device)
        return rules(key), lists
    ids = rank() * len(query) + torch.arange(len(query), device=query.device)
    return Candidates(gather_rows(key), ids, gather_rows(ids)), None


def _known_rules(views: int, n: int, device: torch.device) -> tuple[Callable[[Tensor], Candidates], PairLists | None]:
    """A function from vectors to `Candidates`, and the lists of their pairs.

    views  2: two views of n images, compared with each other; 1: n pairs of a query and a key

    On a CPU both are cached between calls. torch.compile traces the rules instead, and needs no lists.
    """
    if torch.compiler.is_compiling() or device.type != "cpu":
        return _rules(views, n, device), None
    return _kept_rules(views, n)


@lru_cache(maxsize=16)
def _kept_rules(views: int, n: int) -> tuple[Callable[[Tensor], Candidates], PairLists | None]:
    with torch.inference_mode(False):  # training uses the lists again and cannot use tensors made in inference mode
        rules = _rules(views, n, torch.device("cpu"))
        return rules, pair_lists(rules(torch.empty(views * n, 0)))


def _rules(views: int, n: int, device: torch.device) -> Callable[[Tensor], Candidates]:
    ids = torch.arange(n, device=device).repeat(views)
    index = torch.arange(len(ids), device=device) if views == 2 else None
    return partial(Candidates, query_ids=ids, ids=ids, self_index=index, symmetric=views == 2)


def _check_pairs(one: str, a: Tensor, other: str, b: Tensor, gather: bool, least: int = 2) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise InputError(f"{one} and {other} are [N, D] both, got {list(a.shape)} and {list(b.shape)}")
    if a.shape[0] * (world_size() if gather else 1) < least:
        raise InputError(f"a batch of {len(a)} has no negatives: {one} and {other} need at least {least} rows")
