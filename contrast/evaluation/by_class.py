"""Classification measured class by class, for data in which a few classes have most of the images.

M images, K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torchmetrics.functional import classification


class ByClass(NamedTuple):
    """Metrics of each class and their means, which leave out classes without an image."""

    means: dict[str, float]  # macro_f1, the mean of the classes' F1; class_mean_accuracy
    class_accuracy: dict[str, float]  # by name
    confusion: list[list[int]]  # [K, K], how many images of a class were taken for each class


def by_class(predicted: Tensor, labels: Tensor, classes: Sequence[str]) -> ByClass:
    """Metrics by class of the predictions [M] for labels [M] of K named classes."""
    labels = labels.to(predicted.device)
    images, _, accuracy, f1 = per_class(predicted, labels, len(classes))
    some = images > 0
    means = {"macro_f1": float(f1[some].mean()), "class_mean_accuracy": float(accuracy[some].mean())}
    by_name = {name: value for name, value, n in zip(classes, accuracy.tolist(), images.tolist(), strict=True) if n}
    return ByClass(means, by_name, classification.multiclass_confusion_matrix(predicted, labels, len(classes)).tolist())


def per_class(predicted: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    """Number of images, precision, recall and F1 of each class, [K] each; 0 where a denominator is 0."""
    shares = (classification.multiclass_precision, classification.multiclass_recall, classification.multiclass_f1_score)
    of_each = (share(predicted, labels, classes, average="none") for share in shares)
    return [labels.bincount(minlength=classes), *of_each]
