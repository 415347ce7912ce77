"""NT-Xent and CLIP's loss as we and others compute them, for `tiled.py`: the same number from all of a table.

N views or vectors of two towers, D dimensions, temperature T. A loss takes z [N, D], of which the first half are one
view or tower and the second the other, in the same order.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.heads import InfoNCE
from contrast.negatives import InBatch, Paired

DIM, T = 128, 0.1
DENSE, TILED = "ours, whole matrix", "ours, tiles"

Loss = Callable[[Tensor], Tensor]


# --- NT-Xent over N views


def ours(tiled: bool) -> Loss:
    source, head = InBatch(), InfoNCE(T, tiled=tiled)

    def loss(z: Tensor) -> Tensor:
        ((query, candidates),) = source(z.view(2, -1, DIM), None, torch.arange(len(z) // 2))
        return head(query, candidates)[0].mean()

    return loss


def lightly() -> Loss:
    from lightly.loss import NTXentLoss

    criterion = NTXentLoss(T)
    return lambda z: criterion(*z.chunk(2))


def metric_learning() -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss

    criterion = NTXentLoss(T)
    return lambda z: criterion(z, torch.arange(len(z) // 2).repeat(2))


def masked_cross_entropy() -> Loss:
    def loss(z: Tensor) -> Tensor:
        z = F.normalize(z)
        scores = (z @ z.T / T).fill_diagonal_(-torch.inf)
        return F.cross_entropy(scores, torch.arange(len(z)).roll(len(z) // 2))

    return loss


def sup_contrast() -> Loss:
    """The published code of Khosla et al. 2020, without labels."""

    def loss(z: Tensor) -> Tensor:
        z, n = F.normalize(z), len(z)
        scores = z @ z.T / T
        logits = scores - scores.max(dim=1, keepdim=True).values.detach()
        others = torch.ones_like(logits).fill_diagonal_(0)
        positive = torch.eye(n // 2).repeat(2, 2) * others
        log_prob = logits - (logits.exp() * others).sum(1, keepdim=True).log()
        return -((positive * log_prob).sum(1) / positive.sum(1)).mean()

    return loss


def solo_learn() -> Loss:
    """solo-learn's simclr_loss_func, written out: the package does not install everywhere."""

    def loss(z: Tensor) -> Tensor:
        z, ids = F.normalize(z), torch.arange(len(z) // 2).repeat(2)
        exped = torch.exp(torch.einsum("if, jf -> ij", z, z) / T)
        positive = (ids[:, None] == ids[None]).fill_diagonal_(0)
        negative = ids[:, None] != ids[None]
        of_positive, of_negative = (exped * positive).sum(1), (exped * negative).sum(1)
        return -torch.log(of_positive / (of_positive + of_negative)).mean()

    return loss


# --- CLIP's loss over N / 2 pairs, both directions


def our_pairs(tiled: bool) -> Loss:
    source, head = Paired(reverse=True), InfoNCE(T, tiled=tiled)

    def loss(z: Tensor) -> Tensor:
        images, texts = z.chunk(2)
        asked = source(images[None], texts[None], torch.arange(len(images)))
        return torch.cat([head(query, candidates)[0] for query, candidates in asked]).mean()

    return loss


def open_clip() -> Loss:
    from open_clip.loss import ClipLoss

    criterion = ClipLoss()
    return lambda z: criterion(*F.normalize(z).chunk(2), 1 / T)


def info_nce() -> Loss:
    from info_nce import InfoNCE as Theirs

    criterion = Theirs(T)

    def loss(z: Tensor) -> Tensor:
        images, texts = z.chunk(2)
        return (criterion(images, texts) + criterion(texts, images)) / 2

    return loss


def linear_cross_entropy(chunks: bool) -> Loss:
    """torch's, each tower the other's classes; with chunks not all scores are held at a time."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError(f"torch {torch.__version__} has none")
    options = torch.nn.LinearCrossEntropyOptions() if chunks else None

    def loss(z: Tensor) -> Tensor:
        images, texts = F.normalize(z).chunk(2)
        pair = torch.arange(len(images))
        both = [F.linear_cross_entropy(a / T, b, pair, options=options) for a, b in ((images, texts), (texts, images))]
        return sum(both) / 2  # type: ignore[return-value]

    return loss


TABLES: dict[str, dict[str, Callable[[], Loss]]] = {
    "NT-Xent": {
        TILED: lambda: ours(True),
        DENSE: lambda: ours(False),
        "lightly": lightly,
        "masked cross entropy": masked_cross_entropy,
        "SupContrast": sup_contrast,
        "solo-learn": solo_learn,
        "pytorch-metric-learning": metric_learning,
    },
    "CLIP": {
        TILED: lambda: our_pairs(True),
        DENSE: lambda: our_pairs(False),
        "open_clip": open_clip,
        "info-nce-pytorch": info_nce,
        "linear_cross_entropy": lambda: linear_cross_entropy(False),
        "linear_cross_entropy, chunks": lambda: linear_cross_entropy(True),
    },
}
