"""Stratified choices of rows: few labels to learn from, a part held out of the training set, a sample to measure on."""

import numpy as np
import torch
from torch import Tensor

from contrast.candidates import as_ids
from contrast.errors import InputError

MOST_UNLABELLED = 5000  # images without labels that are held out to test on


def labelled_subset(
    labels: Tensor, fraction: float | None = None, per_class: int | None = None, seed: int = 0
) -> Tensor:
    """Rows [M] int64, ascending, of a random subset of `labels` [N] that has every class in it.

    Give one of `fraction` (of each class, rounded to the nearest, at least one image) and `per_class` (images of
    each class). Rows with a negative label are never chosen. The same seed gives the same rows.

    Raises InputError if both or neither are given, a number is out of range, a class has too few images, or no
    row is labelled.
    """
    if (fraction is None) == (per_class is None):
        raise InputError(f"give one of fraction and per_class, not fraction={fraction}, per_class={per_class}")
    if fraction is not None and not 0 < fraction <= 1:
        raise InputError(f"a label fraction must be in (0, 1], not {fraction}")
    if per_class is not None and per_class < 1:
        raise InputError(f"at least one label per class is needed, not per_class={per_class}")
    rng = np.random.default_rng(seed)
    chosen = []
    for label, rows in _rows_by_class(labels):
        if per_class is not None and len(rows) < per_class:
            raise InputError(f"class {label} has {len(rows)} images, fewer than per_class={per_class}")
        count = per_class if per_class is not None else max(1, round(fraction * len(rows)))  # type: ignore[operator]
        chosen.append(rng.choice(rows, count, replace=False))
    return _ascending(chosen)


def hold_out(labels: Tensor, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split the labelled rows of `labels` [N] into (rows to fit, rows held out), int64 and ascending.

    `fraction` of each class is held out, rounded to the nearest, with at least one image of it on either side.
    Rows with a negative label are in neither. The same seed gives the same rows.

    Raises InputError if the fraction is not between 0 and 1, a class has a single image, or no row is labelled.
    """
    if not 0 < fraction < 1:
        raise InputError(f"the fraction held out must be between 0 and 1, not {fraction}")
    rng = np.random.default_rng(seed)
    fit, held = [], []
    for label, rows in _rows_by_class(labels):
        if len(rows) < 2:
            raise InputError(f"class {label} has 1 image: none can be held out beside one to fit")
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        shuffled = rng.permutation(rows)
        held.append(shuffled[:count])
        fit.append(shuffled[count:])
    return _ascending(fit), _ascending(held)


def without_singles(labels: Tensor) -> Tensor:
    """The labels [N], -1 for the only image of a class: it can be held out from nothing."""
    counts = torch.bincount(labels[labels >= 0], minlength=1)
    return torch.where((labels >= 0) & (counts[labels.clamp(min=0)] < 2), -1, labels)


def check_test_fraction(fraction: float) -> None:
    """InputError for a share of the images to test on that is not in [0, 1)."""
    if not 0 <= fraction < 1:
        raise InputError(f"test_fraction must be in [0, 1), not {fraction}")


def hold_out_test(labels: Tensor, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split all rows of `labels` [N] into (rows to train on, rows to test on), int64 and ascending.

    As `hold_out`, but unlabelled rows and the only image of a class are trained on; there may be none to test on.
    Where no row has a label, the fraction of all is held out, and at most `MOST_UNLABELLED` rows.
    """
    shared = without_singles(labels)
    held = torch.zeros(len(labels), dtype=torch.bool)
    if (labels < 0).all():
        count = min(round(fraction * len(labels)), MOST_UNLABELLED)
        held[np.random.default_rng(seed).permutation(len(labels))[:count]] = True
    elif (shared >= 0).any():
        held[hold_out(shared, fraction, seed)[1]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def stratified(labels: Tensor, most: int, seed: int) -> Tensor:
    """Rows [M] int64, ascending, of a random sample of at most `most` of the labelled rows of `labels` [N].

    However the rows are ordered, the same share of every class is drawn (rounded up or down), and at least one row of
    each class if `most` allows it. Rows with a negative label are never chosen. The same seed gives the same rows.

    Raises InputError if `most` is below 1 or no row is labelled.
    """
    if most < 1:
        raise InputError(f"a sample needs at least 1 row, not {most}")
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(rows) for _, rows in _rows_by_class(labels)]
    # Row i of a class of n has the key i / n; ceil(t n) of these are below t, so the lowest keys are an equal share
    keys = np.concatenate([np.arange(len(rows)) / len(rows) for rows in shuffled])
    order = np.lexsort((rng.random(len(keys)), keys))  # equal keys in random order
    return _ascending([np.concatenate(shuffled)[order[:most]]])


def _ascending(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.sort(np.concatenate(parts)))


def _rows_by_class(labels: Tensor) -> list[tuple[int, np.ndarray]]:
    """(label, its rows) of every class that has images; InputError if no row is labelled."""
    values = as_ids("labels", labels).cpu().numpy()
    order = np.argsort(values, kind="stable")
    classes, starts = np.unique(values[order], return_index=True)
    groups = zip(classes.tolist(), np.split(order, starts[1:]), strict=True)
    labelled = [(label, rows) for label, rows in groups if label >= 0]
    if not labelled:
        raise InputError(f"none of {len(values)} images is labelled")
    return labelled
