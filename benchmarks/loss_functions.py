"""NT-Xent, SupCon, CLIP's and SigLIP's loss as we and others compute them, for `losses.py`.

A loss takes z1 and z2 and returns a scalar, the same number from every row of a table. N is the side of the score
matrix: two views of N / 2 images, [N / 2, D] each, or N images and N texts, [N, D] each.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast import functional
from contrast.heads import InfoNCE
from contrast.negatives import InBatch, Paired

DIM, T, BIAS, CLASSES = 128, 0.1, -10.0, 10
OURS = "ours"

Loss = Callable[[Tensor, Tensor], Tensor]
Factory = Callable[[int], Loss]  # from the number of rows of z1


def inputs(table: str, n: int) -> tuple[Tensor, Tensor]:
    rows = n // 2 if table in ("NT-Xent", "SupCon") else n
    z = torch.randn(2, rows, DIM, generator=torch.Generator().manual_seed(0))
    return z[0].clone().requires_grad_(), z[1].clone().requires_grad_()


def labels_of(rows: int) -> Tensor:
    return torch.arange(rows) % CLASSES


# --- NT-Xent


def by_head(tiled: bool, rows: int) -> Loss:
    """Our head with its choice between tiles and the whole matrix made for it."""
    source, head, ids = InBatch(), InfoNCE(T, tiled=tiled), torch.arange(rows)

    def loss(z1: Tensor, z2: Tensor) -> Tensor:
        ((query, candidates),) = source(torch.stack([z1, z2]), None, ids)
        return head(query, candidates)[0].mean()

    return loss


def masked_cross_entropy(z1: Tensor, z2: Tensor) -> Tensor:
    """What one writes down without a library."""
    z = F.normalize(torch.cat([z1, z2]))
    scores = (z @ z.T / T).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(len(z)).roll(len(z1)))


def lightly(rows: int) -> Loss:
    from lightly.loss import NTXentLoss

    return NTXentLoss(T)


def metric_learning(rows: int) -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss

    criterion, ids = NTXentLoss(T), torch.arange(rows).repeat(2)
    return lambda z1, z2: criterion(torch.cat([z1, z2]), ids)


def sup_contrast(z1: Tensor, z2: Tensor, labels: Tensor | None = None) -> Tensor:
    """The operations of SupContrast's published code, on views of length 1."""
    z, n = F.normalize(torch.cat([z1, z2])), len(z1)
    same = torch.eye(n) if labels is None else (labels[:, None] == labels).float()
    scores = z @ z.T / T
    logits = scores - scores.max(dim=1, keepdim=True).values.detach()
    others = torch.ones_like(logits).fill_diagonal_(0)
    positive = same.repeat(2, 2) * others
    log_prob = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    return -((positive * log_prob).sum(1) / positive.sum(1)).mean()


def solo_learn(z1: Tensor, z2: Tensor) -> Tensor:
    """The operations of solo-learn's SimCLR loss, written out: the package does not install everywhere."""
    z, ids = F.normalize(torch.cat([z1, z2])), torch.arange(len(z1)).repeat(2)
    weights = torch.exp(torch.einsum("if, jf -> ij", z, z) / T)
    positive = (ids[:, None] == ids[None]).fill_diagonal_(0)
    negative = ids[:, None] != ids[None]
    of_positive, of_negative = (weights * positive).sum(1), (weights * negative).sum(1)
    return -torch.log(of_positive / (of_positive + of_negative)).mean()


# --- SupCon, of ten classes


def plain_sup_con(labels: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    z, labels = F.normalize(torch.cat([z1, z2])), labels.repeat(2)
    scores = (z @ z.T / T).fill_diagonal_(-torch.inf)
    positive = (labels[:, None] == labels).fill_diagonal_(False)
    of_positives = scores.masked_fill(~positive, 0).sum(1) / positive.sum(1)
    return (scores.logsumexp(1) - of_positives).mean()


def metric_learning_sup_con(rows: int) -> Loss:
    from pytorch_metric_learning.losses import SupConLoss

    criterion, labels = SupConLoss(T), labels_of(rows).repeat(2)
    return lambda z1, z2: criterion(torch.cat([z1, z2]), labels)


# --- CLIP's loss, both directions


def pairs_by_head(tiled: bool, rows: int) -> Loss:
    source, head, ids = Paired(reverse=True), InfoNCE(T, tiled=tiled), torch.arange(rows)

    def loss(image: Tensor, text: Tensor) -> Tensor:
        directions = source(image[None], text[None], ids)
        return torch.cat([head(query, candidates)[0] for query, candidates in directions]).mean()

    return loss


def plain_clip(image: Tensor, text: Tensor) -> Tensor:
    scores, pair = F.normalize(image) @ F.normalize(text).T / T, torch.arange(len(image))
    return (F.cross_entropy(scores, pair) + F.cross_entropy(scores.T, pair)) / 2


def open_clip(rows: int) -> Loss:
    from open_clip.loss import ClipLoss

    criterion = ClipLoss()
    return lambda image, text: criterion(F.normalize(image), F.normalize(text), 1 / T)


def info_nce_pytorch(rows: int) -> Loss:
    from info_nce import info_nce

    return lambda image, text: (info_nce(image, text, temperature=T) + info_nce(text, image, temperature=T)) / 2


def linear_cross_entropy(chunks: bool, rows: int) -> Loss:
    """torch's, each tower the other's classes; with chunks not all scores are held at a time."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError(f"torch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions() if chunks else None

    def loss(image: Tensor, text: Tensor) -> Tensor:
        a, b, pair = F.normalize(image), F.normalize(text), torch.arange(rows)
        one, other = (F.linear_cross_entropy(x / T, y, pair, options=options) for x, y in ((a, b), (b, a)))
        return (one + other) / 2

    return loss


# --- SigLIP's loss


def plain_siglip(image: Tensor, text: Tensor) -> Tensor:
    scores = F.normalize(image) @ F.normalize(text).T / T + BIAS
    return -F.logsigmoid((2 * torch.eye(len(image)) - 1) * scores).sum() / len(image)


def open_clip_siglip(rows: int) -> Loss:
    from open_clip.loss import SigLipLoss

    criterion = SigLipLoss()
    return lambda image, text: criterion(F.normalize(image), F.normalize(text), 1 / T, BIAS)


# the second row of each table is the yardstick: a plain implementation with the whole matrix
TABLES: dict[str, dict[str, Factory]] = {
    "NT-Xent": {
        OURS: lambda rows: partial(functional.nt_xent, temperature=T),
        "masked cross entropy": lambda rows: masked_cross_entropy,
        "ours, tiles": partial(by_head, True),
        "ours, whole matrix": partial(by_head, False),
        "lightly": lightly,
        "SupContrast": lambda rows: sup_contrast,
        "solo-learn": lambda rows: solo_learn,
        "pytorch-metric-learning": metric_learning,
    },
    "CLIP": {
        OURS: lambda rows: partial(functional.clip_loss, temperature=T),
        "cross entropy": lambda rows: plain_clip,
        "ours, tiles": partial(pairs_by_head, True),
        "ours, whole matrix": partial(pairs_by_head, False),
        "open_clip": open_clip,
        "info-nce-pytorch": info_nce_pytorch,
        "linear_cross_entropy": partial(linear_cross_entropy, False),
        "linear_cross_entropy, chunks": partial(linear_cross_entropy, True),
    },
    "SupCon": {
        OURS: lambda rows: partial(functional.sup_con, labels=labels_of(rows), temperature=T),
        "masks": lambda rows: partial(plain_sup_con, labels_of(rows)),
        "SupContrast": lambda rows: partial(sup_contrast, labels=labels_of(rows)),
        "pytorch-metric-learning": metric_learning_sup_con,
    },
    "SigLIP": {
        OURS: lambda rows: partial(functional.siglip_loss, temperature=T, bias=BIAS),
        "log sigmoid": lambda rows: plain_siglip,
        "open_clip": open_clip_siglip,
    },
}
