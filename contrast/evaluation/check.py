"""The one check of labelled features, shared by the protocols."""

import torch
from torch import Tensor

from contrast.errors import InputError


def check_labelled(features: Tensor, labels: Tensor, what: str) -> None:
    """Raise InputError unless features [N, F] are finite and labels [N] are class numbers from 0."""
    if features.ndim != 2 or labels.ndim != 1 or len(features) != len(labels):
        raise InputError(
            f"{what}: features [N, F] and labels [N] wanted, got {list(features.shape)} and {list(labels.shape)}"
        )
    if len(labels) == 0:
        raise InputError(f"{what}: no rows")
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise InputError(f"{what}: {unlabelled} of {len(labels)} rows have no label (-1)")
    broken = int((~torch.isfinite(features).all(dim=1)).sum())
    if broken:
        raise InputError(f"{what}: {broken} of {len(features)} rows are not finite")
