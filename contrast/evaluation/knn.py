"""k nearest neighbours on the features of an encoder, by a weighted vote, exact and in blocks.

N training rows, M test rows, F features, K classes, k neighbours.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from contrast.errors import InputError
from contrast.evaluation.features import EvaluationData, check_finite, check_labelled, labelled_sets


class KNN(NamedTuple):
    """Shares of the test rows, 0 to 1. top5 is None with fewer than six classes."""

    top1: float
    top5: float | None


def nearest(query: Tensor, train: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    """The k largest inner products of each query with training rows, and these rows, [b, k] each, best first.

    query [b, F], train [N, F]; k above N is cut to N. No tensor is larger than [b, block] or the inputs: the best k so
    far are merged with the best k of the next block. Which of several equal rows takes the last place is not defined.
    """
    best, rows = query.new_empty(len(query), 0), query.new_empty(len(query), 0, dtype=torch.long)
    for start in range(0, len(train), block):
        key = train[start : start + block]
        similarity, row = (query @ key.T).topk(min(k, len(key)))  # [b, F] x [c, F] -> [b, c] -> [b, k]
        similarity, row = torch.cat([best, similarity], dim=1), torch.cat([rows, row + start], dim=1)
        best, place = similarity.topk(min(k, similarity.shape[1]))
        rows = row.gather(1, place)
    return best, rows


def check_vote(k: int, temperature: float) -> None:
    """InputError for settings of a vote that are out of range."""
    if k < 1 or not 0 < temperature < math.inf:
        raise InputError(f"kNN: k ({k}) must be at least 1 and the temperature ({temperature}) a number above 0")


@torch.no_grad()
def knn_predict(
    train: Tensor,
    train_labels: Tensor | ArrayLike,
    test: Tensor,
    k: int = 200,
    temperature: float = 0.07,
    classes: int | None = None,
    test_block: int = 512,
    train_block: int = 32768,
) -> Tensor:
    """Classes in order of their votes, [M, min(5, K)] int64; column 0 is the prediction.

    train [N, F], train_labels [N], test [M, F], on one device. Each of the k nearest training rows votes for its
    class with weight exp(similarity / temperature) (Wu et al. 2018, section 3.4; k = 200 and temperature 0.07 are
    theirs). k above N is cut to N; equal votes go to the lower class number. Computed in float32 (float64 stays),
    whatever autocast says; on CUDA exact as far as torch's float32 matmul precision is left at "highest".

    classes  K, where more classes than those of the training rows are ranked

    Raises InputError for unlabelled rows (-1), features that are not finite and shapes that do not fit.
    """
    train_labels = check_labelled(train, train_labels, "kNN, training set")
    check_finite(test, "kNN, test set", width=train.shape[1])
    check_vote(k, temperature)
    if min(test_block, train_block) < 1:
        raise InputError(f"kNN: blocks of {test_block} and {train_block} rows must have at least 1")
    classes = max(classes or 0, int(train_labels.max()) + 1)
    dtype = torch.float64 if train.dtype == torch.float64 else torch.float32
    ranking = []
    bar = tqdm(total=len(test), desc="kNN", unit="image", delay=1, leave=False)
    with bar, torch.autocast(train.device.type, enabled=False):
        train, test = F.normalize(train.to(dtype), dim=1), F.normalize(test.to(dtype), dim=1)
        for query in test.split(test_block):
            similarity, rows = nearest(query, train, k, train_block)
            weight = ((similarity - similarity[:, :1]) / temperature).exp()  # the largest is 1; order unchanged
            votes = weight.new_zeros(len(rows), classes)
            votes.scatter_add_(1, train_labels[rows], weight)  # [b, k] -> [b, K]
            ranking.append(votes.sort(dim=1, descending=True, stable=True).indices[:, :5])
            bar.update(len(rows))
    return torch.cat(ranking)


def knn_score(
    train: Tensor,
    train_labels: Tensor | ArrayLike,
    test: Tensor,
    test_labels: Tensor | ArrayLike,
    k: int = 200,
    temperature: float = 0.07,
    device: torch.device | str | None = None,
) -> KNN:
    """Top-1 and top-5 of `knn_predict` on labelled test rows, computed on device (by default the features')."""
    train, labels, test, target, classes = labelled_sets("kNN", (train, train_labels), (test, test_labels), device)
    hit = knn_predict(train, labels, test, k, temperature, classes) == target[:, None]  # [M, min(5, K)]
    top1, top5 = (int(right.sum()) / len(hit) for right in (hit[:, 0], hit.any(dim=1)))
    return KNN(top1, top5 if classes > 5 else None)


def knn(data: EvaluationData, k: int = 200, temperature: float = 0.07) -> dict[str, float]:
    """The protocol: top1, and top5 with more than five classes, of `knn_score` on the features of `data`.

    k            training images that vote on a test image
    temperature  of the weights of their votes
    """
    check_vote(k, temperature)  # before features are computed
    train, test = data.train_features, data.test_features
    score = knn_score(train, data.train.labels, test, data.test.labels, k, temperature, device=data.device)
    return {name: value for name, value in score._asdict().items() if value is not None}
