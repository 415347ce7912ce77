"""Stratified choices of rows: few labels to learn from, and a part held out of the training set."""

import numpy as np
import torch
from torch import Tensor

from contrast.errors import InputError


def labelled_subset(
    labels: Tensor, fraction: float | None = None, per_class: int | None = None, seed: int = 0
) -> Tensor:
    """Rows [M] int64, ascending, of a random subset of `labels` [N] that has every class in it.

    Give one of `fraction` (of each class, rounded to the nearest, at least one image) and `per_class` (images of
    each class). Rows labelled -1 are never chosen. The same seed gives the same rows.

    Raises InputError if both or neither are given, a number is out of range, a class has too few images, or no
    row is labelled.
    """
    if (fraction is None) == (per_class is None):
        raise InputError(f"give one of fraction and per_class, not fraction={fraction}, per_class={per_class}")
    if fraction is not None and not 0 < fraction <= 1:
        raise InputError(f"a label fraction must lie in (0, 1], not {fraction}")
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
    Rows labelled -1 are in neither. The same seed gives the same rows.

    Raises InputError if the fraction is not between 0 and 1, a class has a single image, or no row is labelled.
    """
    if not 0 < fraction < 1:
        raise InputError(f"the fraction held out must lie between 0 and 1, not {fraction}")
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


def _ascending(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.sort(np.concatenate(parts)))


def _rows_by_class(labels: Tensor) -> list[tuple[int, np.ndarray]]:
    """(label, its rows) of every class that has images; InputError if no row is labelled."""
    values = labels.cpu().numpy()
    groups = [(int(label), np.flatnonzero(values == label)) for label in np.unique(values[values >= 0])]
    if not groups:
        raise InputError(f"none of {len(values)} images is labelled")
    return groups
