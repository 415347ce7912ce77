"""The learning rate scaled with the batch size, without torch: configurations use it before torch is imported."""

import math

from contrast.errors import InputError


def linear_scaled(base_lr: float, batch_size: int, reference: int = 256) -> float:
    """base_lr * batch_size / reference (Goyal et al. 2017), for SGD and LARS. The batch is that of all ranks."""
    if batch_size < 1 or reference < 1:
        raise InputError(f"a learning rate scales with batches of 1 or more, not {batch_size} by {reference}")
    return base_lr * (batch_size / reference)


def sqrt_scaled(base_lr: float, batch_size: int, reference: int = 256) -> float:
    """base_lr * sqrt(batch_size / reference), for Adam and small batches.

    SimCLR's `0.075 * sqrt(batch)` (Chen et al. 2020, B.1) is `sqrt_scaled(0.075, batch, reference=1)`.
    """
    return base_lr * math.sqrt(linear_scaled(1.0, batch_size, reference))
