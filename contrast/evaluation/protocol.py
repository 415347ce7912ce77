"""All figures of one frozen encoder in one call."""

import warnings

import torch
from torch import Tensor

from contrast.data.images.subset import labelled_subset
from contrast.evaluation.knn import knn_score
from contrast.evaluation.probe import linear_probe


def frozen_scores(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 200,
    temperature: float = 0.07,
    per_class: tuple[int, ...] = (10,),
    draws: int = 5,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """kNN and linear figures of train [N, F] and test [M, F], shares between 0 and 1.

    knn_top1, linear_top1, linear_val_top1, linear_learning_rate, linear_weight_decay; knn_top5 and linear_top5 with
    more than five classes; linear_10_per_class_top1 is the mean test top-1 over probes of `draws` random sets of 10
    labels a class (and so on for each number in per_class). A number that some class cannot give is left out.
    """
    train, train_labels, test, test_labels = (
        value.to(device or train.device) for value in (train, train_labels, test, test_labels)
    )
    knn = knn_score(train, train_labels, test, test_labels, k, temperature, progress=progress)
    linear = linear_probe(train, train_labels, test, test_labels, seed=seed, progress=progress)
    scores = {
        "knn_top1": knn.top1,
        "linear_top1": linear.test_top1,
        "linear_val_top1": linear.val_top1,
        "linear_learning_rate": linear.learning_rate,
        "linear_weight_decay": linear.weight_decay,
    }
    if knn.top5 is not None and linear.test_top5 is not None:
        scores |= {"knn_top5": knn.top5, "linear_top5": linear.test_top5}
    counts = torch.bincount(train_labels)
    fewest = int(counts[counts > 0].min())
    for number in per_class:
        if number > fewest:
            continue
        found = []
        for draw in range(draws):
            rows = labelled_subset(train_labels.cpu(), per_class=number, seed=seed + draw).to(train.device)
            with warnings.catch_warnings():
                # with so few rows any setting may win: the border of the grid says nothing
                warnings.filterwarnings("ignore", message=".*border of the grid.*")
                probe = linear_probe(
                    train[rows], train_labels[rows], test, test_labels, seed=seed + draw, progress=progress
                )
            found.append(probe.test_top1)
        scores[f"linear_{number}_per_class_top1"] = sum(found) / draws
    return scores
