"""What the linear probe predicts for each test image, and what it mistakes. M test rows, K classes."""

from typing import NamedTuple

import torch
from torch import Tensor

from contrast.evaluation.features import EvaluationData
from contrast.evaluation.linear_probe import fit_linear, rows_per_block


class Predictions(NamedTuple):
    """Of each test row."""

    labels: Tensor  # [M] int64
    classes: Tensor  # [M] int64, the most probable class
    probability: Tensor  # [M], that of this class


@torch.no_grad()
def predictions(data: EvaluationData, learning_rate: float, weight_decay: float) -> Predictions:
    """The predictions of the probe with the setting that `linear_probe` chose; its top-1 is that of these."""
    labels = data.test.labels
    classes = int(torch.cat([data.train.labels, labels]).max()) + 1
    fit = data.train_features.to(data.device), data.train.labels.to(data.device)
    probe = fit_linear(*fit, classes, [learning_rate], [weight_decay], desc="linear probe of the report")
    best = []
    for rows in data.test_features.to(data.device).split(rows_per_block(fit[0], classes)):
        best.append(probe(rows)[0].softmax(dim=0).max(dim=0))  # [K, m] -> [m]
    values, numbers = (torch.cat(parts).cpu() for parts in zip(*best, strict=True))
    return Predictions(labels, numbers, values)


def worst(found: Predictions, most: int) -> Tensor:
    """The rows of the mistakes of which the probe is surest, at most `most`, surest first."""
    wrong = (found.classes != found.labels).nonzero().flatten()
    return wrong[found.probability[wrong].argsort(descending=True, stable=True)[:most]]
